"""Attention of one or a few positions over a KV cache: only what is visible is read, in parts, on many processors."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.gemv import begins_early, early_option, release, wait
from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView

_PART = 64  # keys of a program


@triton.jit
def _attend(
    query,
    keys,
    values,
    index,
    out,
    peaks,
    end,
    length,
    row_step,
    batch_step,
    head_step,
    scale,
    group: tl.constexpr,
    heads: tl.constexpr,
    size: tl.constexpr,
    block_group: tl.constexpr,
    block_size: tl.constexpr,
    block: tl.constexpr,
    part: tl.constexpr,
    parts: tl.constexpr,
    indexed: tl.constexpr,
    early: tl.constexpr,
) -> None:
    """Queries that share keys, of one position, over a part of what it sees. group: H / Hkv; size: D."""
    row, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch = (row // length).to(tl.int64)
    each, at = tl.arange(0, block_group), tl.arange(0, block_size)
    asks = (each < group)[:, None] & (at < size)[None, :]
    first = row * heads + head * group  # of the heads of all rows
    release(early)
    wait(early)
    seen = tl.load(index + batch) + 1 if indexed else end - length + 1 + row % length
    asked = query + row * row_step + (head * group + each[:, None]) * size + at[None, :]
    own = tl.load(asked, asks, other=0.0)  # [group, D]
    base = batch * batch_step + head * head_step
    position = piece * part + tl.arange(0, block)
    visible = position < seen
    inside = visible[:, None] & (at < size)[None, :]
    where = base + position[:, None] * size + at[None, :]
    key = tl.load(keys + where, inside, other=0.0)
    value = tl.load(values + where, inside, other=0.0)
    scores = tl.dot(own, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(visible[None, :], scores, float("-inf"))
    peak = tl.maximum(tl.max(scores, 1), -1e30)  # finite where nothing is seen, which then weighs nothing
    shares = tl.exp(scores - peak[:, None])
    weight = tl.sum(shares, 1)
    mixed = tl.dot(shares.to(value.dtype), value, input_precision="ieee")
    line = (first + each) * parts + piece
    weight = tl.where(weight == 0, 1.0, weight)
    mixed = mixed / weight[:, None]
    tl.store(out + line[:, None] * size + at[None, :], mixed.to(out.dtype.element_ty), asks)
    if parts > 1:
        tl.store(peaks + line, peak + tl.log(weight), each < group)


@triton.jit
def _merge(
    partial,
    peaks,
    out,
    size: tl.constexpr,
    parts: tl.constexpr,
    block_size: tl.constexpr,
    block_parts: tl.constexpr,
    early: tl.constexpr,
) -> None:
    """One head of one position from its parts, each by how much it weighs."""
    head, at, part = tl.program_id(0), tl.arange(0, block_size), tl.arange(0, block_parts)
    release(early)
    wait(early)
    weights = tl.load(peaks + head * parts + part, part < parts, other=float("-inf"))
    weights = tl.exp(weights - tl.max(weights, 0))
    inside = (part < parts)[:, None] & (at < size)[None, :]
    given = tl.load(partial + (head * parts + part[:, None]) * size + at[None, :], inside, other=0.0)
    mixed = tl.sum(given * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + head * size + at, mixed.to(out.dtype.element_ty), at < size)


def attention(query: Tensor, place: AttentionMetadata, view: KVCacheView) -> Tensor:
    """As `plain.attend`."""
    rows, heads, size = query.shape
    keys, end = view.keys, view.keys.shape[2]
    parts = triton.cdiv(end, _PART)
    out = query.new_empty(rows, heads * size)
    partial = query.new_empty(rows, heads, parts, size, dtype=torch.float32) if parts > 1 else out
    peaks = query.new_empty(rows, heads, parts, dtype=torch.float32)
    index = keys if view.index is None else view.index
    group, early = heads // keys.shape[1], begins_early(query.device)
    blocks = [max(16, triton.next_power_of_2(each)) for each in (group, size, min(end, _PART))]
    _attend[(rows, keys.shape[1], parts)](
        query, keys, view.values, index, partial, peaks,
        end, place.length, query.stride(0), *keys.stride()[:2], 1 / math.sqrt(size), group, heads, size,
        *blocks, _PART, parts, view.index is not None, early,
        **early_option(early),
    )  # fmt: skip
    if parts > 1:
        sizes = (size, parts, blocks[1], triton.next_power_of_2(parts), early)
        _merge[(rows * heads,)](partial, peaks, out, *sizes, **early_option(early))
    return out
