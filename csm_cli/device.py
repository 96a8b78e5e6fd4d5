"""Which device computes, and in which dtype. Names are checked without torch, which takes its time to load."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from csm_cli.errors import DeviceMissing, UsageError

if TYPE_CHECKING:
    import torch

DTYPES = {  # as torch calls them
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}


def check_names(device: str, dtype: str) -> None:
    """Raises UsageError where one of them is the name of nothing."""
    if device != "auto" and not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,4})?", device):
        raise UsageError(f'unknown device "{device}"; use auto, cpu, cuda, cuda:N or mps')
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f'unknown dtype "{dtype}"; use auto, {", ".join(DTYPES)}')


def _present(kind: str, index: int) -> bool:
    import torch

    if kind == "cuda":
        return torch.cuda.is_available() and index < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def pick_device(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; auto prefers CUDA, then MPS.

    Raises:
        UsageError: no such name.
        DeviceMissing: a device that this machine does not have.
    """
    import torch

    check_names(name, "auto")
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _present(kind, 0))
    kind, _, index = name.partition(":")
    if not _present(kind, int(index or 0)):
        raise DeviceMissing(f'no device "{name}" on this machine; `csm doctor` lists what there is')
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: no such name.
    """
    import torch

    check_names("auto", name)
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return as_torch(name)


def as_torch(name: str) -> torch.dtype:
    """One of DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype
