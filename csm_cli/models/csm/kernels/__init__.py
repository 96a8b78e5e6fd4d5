"""The operators of a decode step between its embeddings: PyTorch's, or on CUDA Triton's, one launch each."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csm_cli.models.csm.kernels import reference
from csm_cli.models.csm.kernels.reference import Attention, LinearAdd, NormLinear, QkvRope, SampleTopK


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operator; `reference` documents them."""

    norm_linear: NormLinear = reference.norm_linear
    qkv_rope: QkvRope = reference.qkv_rope
    attention: Attention = reference.attention
    linear_add: LinearAdd = reference.linear_add
    swiglu: NormLinear = reference.swiglu
    sample_top_k: SampleTopK = reference.sample_top_k


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on CUDA if it is installed, else PyTorch's."""
    return triton_kernels() if device.type == "cuda" and has_triton() else Kernels()


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and a C compiler, which it needs to launch kernels."""
    compilers = (os.environ.get("CC", "gcc"), "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def triton_kernels() -> Kernels:
    """Triton's; PyTorch's inside torch.compile, which makes its own, and for more rows than a decode step has.

    Imports Triton.
    """
    from csm_cli.models.csm.kernels.attention import attention
    from csm_cli.models.csm.kernels.fused_linear import MAX_ROWS, linear_add, norm_linear, qkv_rope, swiglu
    from csm_cli.models.csm.kernels.sample_top_k import sample_top_k

    def dispatch(kernel: Callable[..., Any], fallback: Callable[..., Any]) -> Callable[..., Any]:
        def choose(x: Tensor, *args: Any) -> Any:
            return (fallback if len(x) > MAX_ROWS or torch.compiler.is_compiling() else kernel)(x, *args)

        return choose

    fused: tuple[Callable[..., Any], ...] = (norm_linear, qkv_rope, attention, linear_add, swiglu, sample_top_k)
    return Kernels(*map(dispatch, fused, astuple(Kernels())))
