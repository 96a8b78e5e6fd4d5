from __future__ import annotations

import pytest
import torch

from csm_cli.device import check_names, pick_device, pick_dtype
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
