"""Norm, queries, keys and values, RoPE and the write to the KV cache, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.gemv import gemv, gemv_pairs, launch
from csm_cli.models.csm.kernels.reference import LinearWeight, NormWeight
from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView


@triton.jit
def _turn(
    x,
    row_step,
    weight,
    step,
    rope,
    query,
    new,
    index,
    rows,
    eps,
    length,
    batch_step,
    head_step,
    position_step,
    heads: tl.constexpr,
    kept: tl.constexpr,
    half: tl.constexpr,
    indexed: tl.constexpr,
    inputs: tl.constexpr,
    share: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    whole: tl.constexpr,
    rounded: tl.constexpr,
    early: tl.constexpr,
    lines: tl.constexpr,
) -> None:
    """Some pairs of neighbours, of queries, keys or values. heads: H; kept: 2 Hkv; half: D / 2."""
    line = tl.program_id(0) * lines + tl.arange(0, lines)
    total = gemv(
        x, row_step, weight, step, line, line < (heads + kept) * 2 * half, rows, eps, 0,
        inputs, share, block_rows, block_in, whole, rounded, True, early,
    )  # fmt: skip
    even, odd = gemv_pairs(total)  # [lines / 2, R]
    pair = (tl.program_id(0) * (lines // 2) + tl.arange(0, lines // 2))[:, None]
    row = tl.arange(0, block_rows)[None, :]
    head, at = pair // half, pair % half
    there = (row < rows) & (head < heads + kept)
    turned = there & (head < heads + kept // 2)
    table = rope + row * 4 * half + 2 * at  # [2, D / 2, 2]: cosines twice, then -sines and sines
    cos = tl.load(table, turned, other=1.0).to(tl.float32)
    sin = tl.load(table + 2 * half + 1, turned, other=0.0).to(tl.float32)
    first, second = even * cos - odd * sin, odd * cos + even * sin
    target = query + (row * heads + head) * 2 * half + 2 * at
    asks = there & (head < heads)
    tl.store(target, first.to(query.dtype.element_ty), asks)
    tl.store(target + 1, second.to(query.dtype.element_ty), asks)
    batch = (row // length).to(tl.int64)
    position = tl.load(index + batch, row < rows, other=0) if indexed else (row % length).to(tl.int64)
    target = new + batch * batch_step + (head - heads) * head_step + position * position_step + 2 * at
    stays = there & (head >= heads)
    tl.store(target, first.to(new.dtype.element_ty), stays)
    tl.store(target + 1, second.to(new.dtype.element_ty), stays)


def qkv_rope(
    x: Tensor, norm: NormWeight, projection: LinearWeight, place: AttentionMetadata, view: KVCacheView
) -> Tensor:
    """As `plain.turn`, for rope in cosines and sines."""
    new, kept, size = view.new, view.new.shape[1], view.new.shape[3]
    heads = projection.lines.shape[0] // size - kept
    query = x.new_empty(len(x), heads, size)
    index = new if view.index is None else view.index  # a pointer is wanted either way
    how = launch(x, projection)
    _turn[(how.programs,)](
        x, x.stride(0), projection.lines, projection.step, place.rope, query, new, index,
        len(x), norm.eps, place.length, *new.stride()[:3],
        heads=heads, kept=kept, half=size // 2, indexed=view.index is not None, **how.sizes, **how.options,
    )  # fmt: skip
    return query
