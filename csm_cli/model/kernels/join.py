"""Residual and norm in one pass: otherwise a copy of the residual, which cuBLAS adds to, and the norm."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.model.kernels.plain import Projection, Scaling


@triton.jit
def _join(x, y, total, normed, eps, width: tl.constexpr, block: tl.constexpr) -> None:
    at = tl.arange(0, block)
    kept = at < width
    start = tl.program_id(0) * width
    added = tl.load(x + start + at, kept, other=0.0).to(tl.float32) + tl.load(y + start + at, kept, other=0.0)
    rounded = added.to(total.dtype.element_ty)
    tl.store(total + start + at, rounded, kept)
    value = rounded.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value) / width + eps)
    tl.store(normed + start + at, (value * scale).to(normed.dtype.element_ty), kept)


def join(x: Tensor, projection: Projection, mixed: Tensor, norm: Scaling) -> tuple[Tensor, Tensor]:
    """As `plain.join`; the projection is rounded before it is added, as it is in transformers."""
    y = projection(mixed)
    total, normed = torch.empty_like(y), torch.empty_like(y)
    width = y.shape[1]
    _join[(len(y),)](x, y, total, normed, norm.eps, width, triton.next_power_of_2(width))
    return total, normed
