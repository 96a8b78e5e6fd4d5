"""Norm, gates and what they let through, and SiLU of the one times the other, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.gemv import gemv, gemv_pairs, launch
from csm_cli.models.csm.kernels.reference import LinearWeight, NormWeight


@triton.jit
def _gate(
    x,
    row_step,
    weight,
    step,
    out,
    rows,
    eps,
    width: tl.constexpr,
    inputs: tl.constexpr,
    share: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    whole: tl.constexpr,
    rounded: tl.constexpr,
    early: tl.constexpr,
    lines: tl.constexpr,
) -> None:
    each = tl.arange(0, lines)
    unit = tl.program_id(0) * (lines // 2) + each // 2
    total = gemv(
        x, row_step, weight, step, unit + (each % 2) * width, unit < width, rows, eps, 0,
        inputs, share, block_rows, block_in, whole, rounded, True, early,
    )  # fmt: skip
    gates, up = gemv_pairs(total)  # [lines / 2, R]
    unit = (tl.program_id(0) * (lines // 2) + tl.arange(0, lines // 2))[:, None]
    row = tl.arange(0, block_rows)[None, :]
    value = gates / (1 + tl.exp(-gates)) * up
    tl.store(out + row * width + unit, value.to(out.dtype.element_ty), (row < rows) & (unit < width))


def swiglu(x: Tensor, norm: NormWeight, projection: LinearWeight) -> Tensor:
    """As `plain.gate`."""
    width = projection.lines.shape[0] // 2
    out = x.new_empty(len(x), width)
    how = launch(x, projection)
    _gate[(how.programs,)](
        x, x.stride(0), projection.lines, projection.step, out, len(x), norm.eps, width, **how.sizes, **how.options
    )
    return out
