"""Products with weights of 8 bits: half of what a frame reads. Activations stay as they are."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_OUT, _IN = 16, 256  # of one program, for one row: as many programs as keep a GPU's processors busy
_TILE_OUT, _TILE_IN = 32, 64


@triton.jit
def _one_row(x, weight, step, y, outputs, inputs, block_out: tl.constexpr, block_in: tl.constexpr) -> None:
    """A row by a part of the outputs."""
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    kept = out < outputs
    total = tl.zeros((block_out, block_in), tl.float32)
    for start in range(0, inputs, block_in):
        at = start + tl.arange(0, block_in)
        given = tl.load(x + at, at < inputs, other=0.0).to(tl.float32)
        inside = kept[:, None] & (at < inputs)[None, :]
        total += tl.load(weight + out[:, None] * inputs + at[None, :], inside, other=0).to(tl.float32) * given[None, :]
    scaled = tl.sum(total, 1) * tl.load(step + out, kept, other=0.0)
    tl.store(y + out, scaled.to(y.dtype.element_ty), kept)


@triton.jit
def _rows(
    x,
    weight,
    step,
    y,
    rows,
    outputs,
    inputs,
    block_rows: tl.constexpr,
    block_out: tl.constexpr,
    block_in: tl.constexpr,
) -> None:
    """A tile of rows by a part of the outputs."""
    out = tl.program_id(0) * block_out + tl.arange(0, block_out)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    kept, there = out < outputs, row < rows
    total = tl.zeros((block_rows, block_out), tl.float32)
    for start in range(0, inputs, block_in):
        at = start + tl.arange(0, block_in)
        within = at < inputs
        given = tl.load(x + row[:, None] * inputs + at[None, :], there[:, None] & within[None, :], other=0.0)
        part = tl.load(weight + out[None, :] * inputs + at[:, None], within[:, None] & kept[None, :], other=0)
        total = tl.dot(given, part.to(given.dtype), total)
    scaled = total * tl.load(step + out, kept, other=0.0)[None, :]
    tl.store(y + row[:, None] * outputs + out[None, :], scaled.to(y.dtype.element_ty), there[:, None] & kept[None, :])


def product(x: Tensor, weight: Tensor, step: Tensor) -> Tensor:
    """As `plain.product`."""
    (rows, inputs), outputs = x.shape, len(weight)
    x, y = x.contiguous(), x.new_empty(rows, outputs)
    if rows == 1:
        _one_row[(triton.cdiv(outputs, _OUT),)](x, weight, step, y, outputs, inputs, _OUT, _IN)
        return y
    tile = min(64, max(16, triton.next_power_of_2(rows)))  # 16 is the least a product of tiles takes
    grid = (triton.cdiv(outputs, _TILE_OUT), triton.cdiv(rows, tile))
    _rows[grid](x, weight, step, y, rows, outputs, inputs, tile, _TILE_OUT, _TILE_IN)
    return y
