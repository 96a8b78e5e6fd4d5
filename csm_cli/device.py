"""Device and dtype of the model, by name. Names are checked without importing torch, which is slow."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from csm_cli.errors import DeviceMissing, UsageError

if TYPE_CHECKING:
    import torch

DEVICE_PATTERN = r"cpu|mps|cuda(:[0-9]{1,4})?"
DTYPES = {  # accepted names, and torch's
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


def set_mkl_rounding() -> None:
    """Sets MKL_CBWR=AUTO,STRICT on processors that are not Intel's, unless the variable is set already.

    There MKL otherwise rounds a product by the alignment of its operands in memory and by the number of threads, so
    that a row of a batch would differ from the same row alone. On AMD EPYC the strict mode costs nothing measurable;
    Intel's kernels do not need it.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 (pathlib imports slowly)
            vendor = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        import platform

        vendor = platform.processor()
    if "GenuineIntel" not in vendor:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def check_names(device: str, dtype: str) -> None:
    """Raises UsageError for an unknown name."""
    if device != "auto" and not re.fullmatch(DEVICE_PATTERN, device):
        raise UsageError(f'unknown device "{device}"; use auto, cpu, cuda, cuda:N or mps')
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f'unknown dtype "{dtype}"; use auto, {", ".join(DTYPES)}')


def pick_device(name: str = "auto") -> torch.device:
    """The device `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; auto prefers CUDA, then MPS.

    Raises:
        UsageError: unknown name.
        DeviceMissing: not on this machine.
    """
    import torch

    def is_available(kind: str, index: int) -> bool:
        if kind == "cuda":
            return torch.cuda.is_available() and index < torch.cuda.device_count()
        return kind == "cpu" or torch.backends.mps.is_available()

    check_names(name, "auto")
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if is_available(kind, 0))
    kind, _, index = name.partition(":")
    if not is_available(kind, int(index or 0)):
        raise DeviceMissing(f'no device "{name}" on this machine; `csm doctor` lists the available devices')
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: unknown name.
    """
    import torch

    check_names("auto", name)
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return as_torch(name)


def as_torch(name: str) -> torch.dtype:
    """The dtype of one of the names in DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype
