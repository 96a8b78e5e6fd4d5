from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm_cli.device import check_names, pick_device, pick_dtype, set_mkl_rounding
from csm_cli.errors import DeviceMissing, UsageError


def test_auto_is_an_available_device() -> None:
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "cpu:", "cuda:", "cuda:٣", "cuda:1\n"])
def test_an_unknown_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps", "cuda"])
def test_an_absent_device_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceMissing, match="csm doctor"):
        pick_device(name)


def test_names_are_checked_alone() -> None:
    check_names("auto", "auto")
    check_names("cuda:99", "bf16")
    with pytest.raises(UsageError, match="unknown device"):
        check_names("gpu", "auto")
    with pytest.raises(UsageError, match="unknown dtype"):
        check_names("cpu", "int4")


def test_dtypes_have_short_names() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("fp16", cpu) == torch.float16
    with pytest.raises(UsageError, match="bfloat16"):
        pick_dtype("int4", cpu)


@pytest.mark.parametrize(
    ("cpuinfo", "already", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\n", None, "AUTO,STRICT"),
        ("vendor_id\t: GenuineIntel\n", None, None),
        ("processor\t: 0\n", None, "AUTO,STRICT"),
        ("vendor_id\t: AuthenticAMD\n", "COMPATIBLE", "COMPATIBLE"),
    ],
)
def test_mkl_rounds_strictly_except_on_intel(
    cpuinfo: str, already: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    if already:
        monkeypatch.setenv("MKL_CBWR", already)
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(cpuinfo))
    set_mkl_rounding()
    assert os.environ.get("MKL_CBWR") == expected


@pytest.mark.parametrize(("processor", "expected"), [("Intel64 Family 6, GenuineIntel", None), ("", "AUTO,STRICT")])
def test_the_processor_is_known_without_proc(
    processor: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.delenv("MKL_CBWR", raising=False)
    monkeypatch.setattr("builtins.open", no_file)
    monkeypatch.setattr("platform.processor", lambda: processor)
    set_mkl_rounding()
    assert os.environ.get("MKL_CBWR") == expected


def test_importing_the_package_sets_mkl_rounding() -> None:
    code = "import os, csm_cli.types, sys; print('torch' in sys.modules, 'MKL_CBWR' in os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    intel = Path("/proc/cpuinfo").exists() and "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    assert result.stdout.split() == ["False", str(not intel)]
