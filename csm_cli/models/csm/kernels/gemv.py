"""Products of a few rows with a weight [out, in]: what the kernels that read weights have in common.

Such products take as long as reading the weight takes, if enough of it is on its way at once. So for up to four rows a
program's whole part of the weight is loaded at once, and before the program waits for the kernel before it: weights
never change. From five rows on, tensor cores multiply tile by tile.

Tried and left, on an H200: bringing a weight near by prefetches into the L2 cache, a program's own part before it waits
(a layer of 32 rows took 10 % longer) or a later kernel's (2 to 30 % longer, the more the more was brought).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from csm_cli.models.csm.kernels.reference import LinearWeight

MAX_ROWS = 64
_MOST_WHOLE = 4
_BYTES, _PER_WARP = 8, 8192  # of every input, that a program loads at once, and of all that one warp of it does
_TILE_OUT, _TILE_IN, _STAGES = 64, 128, 4  # of a program that goes tile by tile
_LONGEST = 1024  # inputs that it goes through where others can go through the rest


@triton.jit
def wait(early: tl.constexpr) -> None:
    """For the kernel before this one, where this one began before that ended. Nothing it wrote may be read earlier."""
    if early:
        cuda.gdc_wait()


@triton.jit
def release(early: tl.constexpr) -> None:
    """Lets the kernel after this one begin: as far as its own wait."""
    if early:
        cuda.gdc_launch_dependents()


@triton.jit
def gemv(
    x,
    row_step,
    weight,
    step,
    lines,
    kept,
    rows,
    eps,
    first,
    inputs: tl.constexpr,
    share: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    whole: tl.constexpr,
    rounded: tl.constexpr,
    normed: tl.constexpr,
    early: tl.constexpr,
):
    """[lines, block_rows] of rows x by the weight's `lines`, those that are `kept`, in float32.

    rounded: the weight has 8 bits, `step` apart. normed: x counts as divided by its root mean square. share: how many
    of the inputs count, from the `first`.
    """
    column = tl.arange(0, block_rows)
    squares = tl.zeros((block_rows,), tl.float32)
    total = tl.zeros((lines.shape[0], block_rows), tl.float32)
    release(early)
    if whole:
        at = tl.arange(0, block_in)
        inside = at < inputs
        tile = tl.load(weight + lines[:, None] * inputs + at[None, :], kept[:, None] & inside[None, :], other=0)
        wait(early)
        wide = tile.to(tl.float32)
        for row in tl.static_range(block_rows):
            given = tl.load(x + row * row_step + at, inside & (row < rows), other=0.0).to(tl.float32)
            total = tl.where((column == row)[None, :], tl.sum(wide * given[None, :], 1)[:, None], total)
            if normed:
                squares = tl.where(column == row, tl.sum(given * given, 0), squares)
    else:
        wait(early)
        for start in range(0, share, block_in):
            at = first + start + tl.arange(0, block_in)
            inside = at < tl.minimum(inputs, first + share)
            tile = tl.load(weight + lines[:, None] * inputs + at[None, :], kept[:, None] & inside[None, :], other=0)
            there = (column < rows)[:, None] & inside[None, :]
            given = tl.load(x + column[:, None] * row_step + at[None, :], there, other=0.0)
            total = tl.dot(tile.to(given.dtype), tl.trans(given), total, input_precision="ieee")
            if normed:
                squares += tl.sum(given.to(tl.float32) * given.to(tl.float32), 1)
    if normed:
        total *= (1 / tl.sqrt(squares / inputs + eps))[None, :]
    if rounded:
        total *= tl.load(step + lines, kept, other=0.0)[:, None]
    return total


@triton.jit
def gemv_pairs(total):
    """[2 n, R] to two of [n, R]: its even lines and its odd ones."""
    half: tl.constexpr = total.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(total, (half, 2, total.shape[1])), (0, 2, 1)))


@dataclass(frozen=True)
class Launch:
    """How rows meet a weight: by `programs`, each for a part of the outputs and one of `parts` of the inputs.

    sizes, options: what `sums` and Triton take.
    """

    programs: int
    parts: int
    sizes: dict[str, Any]
    options: dict[str, Any]


def launch(x: Tensor, projection: LinearWeight, divisible: bool = False) -> Launch:
    """For x [N, in] with N of at most MOST_ROWS. divisible: the sums may be made in parts, which the caller adds."""
    rows, (outputs, inputs) = len(x), projection.lines.shape
    whole, parts = rows <= _MOST_WHOLE, 1
    if whole:
        lines = _BYTES // projection.lines.itemsize
        block_rows, block_in = triton.next_power_of_2(rows), triton.next_power_of_2(inputs)
        options = {"num_warps": min(8, max(2, _BYTES * block_in // _PER_WARP))}
    else:
        lines, block_rows, block_in = _TILE_OUT, max(16, triton.next_power_of_2(rows)), _TILE_IN
        options = {"num_warps": 4, "num_stages": _STAGES}
        parts = triton.cdiv(inputs, _LONGEST) if divisible else 1
    share = triton.cdiv(triton.cdiv(inputs, parts), block_in) * block_in if parts > 1 else inputs
    rounded, early = projection.step is not None, begins_early(x.device)
    sizes = {"inputs": inputs, "share": share, "block_rows": block_rows, "block_in": block_in, "whole": whole}
    sizes |= {"rounded": rounded, "early": early, "lines": lines}
    return Launch(triton.cdiv(outputs, lines), parts, sizes, early_option(early) | options)


@cache
def begins_early(device: torch.device) -> bool:
    """Whether kernels may begin before the one before them ended: CUDA's programmatic dependent launch."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def early_option(early: bool) -> dict[str, Any]:
    return {"launch_pdl": True} if early else {}
