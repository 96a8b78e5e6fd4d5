"""Which device computes, and in which dtype."""

from __future__ import annotations

import re

import torch

from csm_cli.errors import DeviceMissing, UsageError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def _present(kind: str, index: int) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available() and index < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def pick_device(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; auto prefers CUDA, then MPS.

    Raises:
        UsageError: no such name.
        DeviceMissing: a device that this machine does not have.
    """
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _present(kind, 0))
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise UsageError(f'unknown device "{name}"; use auto, cpu, cuda, cuda:N or mps')
    if not _present(kind, int(index or 0)):
        raise DeviceMissing(f'no device "{name}" on this machine; `csm doctor` lists what there is')
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        UsageError: no such name.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(f'unknown dtype "{name}"; use auto, {", ".join(DTYPES)}')
    return DTYPES[name]
