"""A projection of the residual stream, or onto it, in one pass with the norm before it or the sum after it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.gemv import Launch, begins_early, early_option, gemv, launch, release, wait
from csm_cli.models.csm.kernels.reference import LinearWeight, NormWeight

_ADDED = 1024  # sums of a program


@triton.jit
def _put(
    x,
    row_step,
    weight,
    step,
    residual,
    out,
    rows,
    eps,
    outputs: tl.constexpr,
    normed: tl.constexpr,
    added: tl.constexpr,
    inputs: tl.constexpr,
    share: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    whole: tl.constexpr,
    rounded: tl.constexpr,
    early: tl.constexpr,
    lines: tl.constexpr,
) -> None:
    line = tl.program_id(0) * lines + tl.arange(0, lines)
    total = gemv(
        x, row_step, weight, step, line, line < outputs, rows, eps, tl.program_id(1) * share,
        inputs, share, block_rows, block_in, whole, rounded, normed, early,
    )  # fmt: skip
    row = tl.arange(0, block_rows)[None, :]
    where, there = row * outputs + line[:, None], (row < rows) & (line < outputs)[:, None]
    out += tl.program_id(1) * rows * outputs
    if added:
        total += tl.load(residual + where, there, other=0.0).to(tl.float32)
    tl.store(out + where, total.to(out.dtype.element_ty), there)


@triton.jit
def _add(partial, residual, out, size, parts: tl.constexpr, block: tl.constexpr, early: tl.constexpr) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    there = at < size
    release(early)
    wait(early)
    total = tl.load(residual + at, there, other=0.0).to(tl.float32)
    for part in tl.static_range(parts):
        total += tl.load(partial + part * size + at, there, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), there)


def norm_linear(x: Tensor, norm: NormWeight, projection: LinearWeight) -> Tensor:
    """As `plain.read`."""
    out = x.new_empty(len(x), len(projection.lines))
    _launched(x, projection, launch(x, projection), out, eps=norm.eps)
    return out


def linear_add(x: Tensor, projection: LinearWeight, mixed: Tensor) -> Tensor:
    """As `plain.onto`."""
    out, how = torch.empty_like(x), launch(mixed, projection, divisible=True)
    if how.parts == 1:
        _launched(mixed, projection, how, out, residual=x)
        return out
    partial = x.new_empty(how.parts, *x.shape, dtype=torch.float32)
    _launched(mixed, projection, how, partial)
    early, size = begins_early(x.device), x.numel()
    _add[(triton.cdiv(size, _ADDED),)](partial, x, out, size, how.parts, _ADDED, early, **early_option(early))
    return out


def _launched(
    x: Tensor,
    projection: LinearWeight,
    how: Launch,
    out: Tensor,
    eps: float | None = None,
    residual: Tensor | None = None,
) -> None:
    """eps: of the norm, if x is to be normed."""
    _put[(how.programs, how.parts)](
        x, x.stride(0), projection.lines, projection.step, residual, out, len(x), eps or 0.0,
        len(projection.lines), eps is not None, residual is not None, **how.sizes, **how.options,
    )  # fmt: skip
