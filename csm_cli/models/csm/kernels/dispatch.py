"""Where Triton's kernels are used is decided here and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csm_cli.models.csm.kernels import reference
from csm_cli.models.csm.kernels.reference import Attention, LinearAdd, NormLinear, QkvRope, SampleTopK


@dataclass(frozen=True)
class Kernels:
    """What each does, `plain` says."""

    read: NormLinear = reference.norm_linear
    turn: QkvRope = reference.qkv_rope
    attend: Attention = reference.attention
    onto: LinearAdd = reference.linear_add
    gate: NormLinear = reference.swiglu
    draw: SampleTopK = reference.sample_top_k


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on CUDA where it is installed; PyTorch's elsewhere, and within torch.compile, which makes its own."""
    if device.type != "cuda" or not has_triton():
        return Kernels()
    return fused()


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and a C compiler with it, which it needs to launch kernels."""
    compilers = (os.environ.get("CC", "gcc"), "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def fused() -> Kernels:
    """Triton's, which is imported here."""
    from csm_cli.models.csm.kernels.attention import attention
    from csm_cli.models.csm.kernels.gemv import MAX_ROWS
    from csm_cli.models.csm.kernels.linear_add import linear_add, norm_linear
    from csm_cli.models.csm.kernels.qkv_rope import qkv_rope
    from csm_cli.models.csm.kernels.sample_top_k import sample_top_k
    from csm_cli.models.csm.kernels.swiglu import swiglu

    return _where_they_pay(Kernels(norm_linear, qkv_rope, attention, linear_add, swiglu, sample_top_k), MAX_ROWS)


def _where_they_pay(kernels: Kernels, most: int) -> Kernels:
    """The same; PyTorch's where a compiler is looking, and for more rows than a frame has: a prefill's."""

    def either(kernel: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(x: Tensor, *given: Any) -> Any:
            return (twin if len(x) > most or torch.compiler.is_compiling() else kernel)(x, *given)

        return chosen

    twins = Kernels()
    return Kernels(*(either(getattr(kernels, each.name), getattr(twins, each.name)) for each in fields(Kernels)))
