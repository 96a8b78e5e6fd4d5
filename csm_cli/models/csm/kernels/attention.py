"""Decode attention over a KV cache: reads only visible positions, split into parts over many processors."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.fused_linear import pdl_option, release_next, supports_pdl, wait_for_previous
from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView

_KEYS_PER_SPLIT = 64


@triton.jit
def _attention_kernel(
    query,
    keys,
    values,
    slot_mapping,
    out,
    log_sums,
    end,
    query_len,
    query_stride,
    batch_stride,
    head_stride,
    scale,
    group: tl.constexpr,
    heads: tl.constexpr,
    size: tl.constexpr,
    block_group: tl.constexpr,
    block_size: tl.constexpr,
    block_keys: tl.constexpr,
    split_size: tl.constexpr,
    splits: tl.constexpr,
    mapped: tl.constexpr,
    pdl: tl.constexpr,
) -> None:
    """The queries of one position that share keys, over one split. group: H / Hkv; size: D."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch = (row // query_len).to(tl.int64)
    member, dim = tl.arange(0, block_group), tl.arange(0, block_size)
    query_mask = (member < group)[:, None] & (dim < size)[None, :]
    first = row * heads + head * group  # of the heads of all rows
    release_next(pdl)
    wait_for_previous(pdl)
    visible_len = tl.load(slot_mapping + batch) + 1 if mapped else end - query_len + 1 + row % query_len
    query_offsets = query + row * query_stride + (head * group + member[:, None]) * size + dim[None, :]
    queries = tl.load(query_offsets, query_mask, other=0.0)  # [group, D]
    base = batch * batch_stride + head * head_stride
    position = split * split_size + tl.arange(0, block_keys)
    visible = position < visible_len
    mask = visible[:, None] & (dim < size)[None, :]
    offsets = base + position[:, None] * size + dim[None, :]
    key = tl.load(keys + offsets, mask, other=0.0)
    value = tl.load(values + offsets, mask, other=0.0)
    scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(visible[None, :], scores, float("-inf"))
    peak = tl.maximum(tl.max(scores, 1), -1e30)  # finite where nothing is visible, so that its weight is 0
    weights = tl.exp(scores - peak[:, None])
    total = tl.sum(weights, 1)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    index = (first + member) * splits + split
    total = tl.where(total == 0, 1.0, total)
    mixed = mixed / total[:, None]
    tl.store(out + index[:, None] * size + dim[None, :], mixed.to(out.dtype.element_ty), query_mask)
    if splits > 1:
        tl.store(log_sums + index, peak + tl.log(total), member < group)


@triton.jit
def _merge_splits_kernel(
    partial,
    log_sums,
    out,
    size: tl.constexpr,
    splits: tl.constexpr,
    block_size: tl.constexpr,
    block_splits: tl.constexpr,
    pdl: tl.constexpr,
) -> None:
    """One head of one position: its splits, weighted by their softmax sums."""
    head, dim, split = tl.program_id(0), tl.arange(0, block_size), tl.arange(0, block_splits)
    release_next(pdl)
    wait_for_previous(pdl)
    weights = tl.load(log_sums + head * splits + split, split < splits, other=float("-inf"))
    weights = tl.exp(weights - tl.max(weights, 0))
    mask = (split < splits)[:, None] & (dim < size)[None, :]
    values = tl.load(partial + (head * splits + split[:, None]) * size + dim[None, :], mask, other=0.0)
    mixed = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + head * size + dim, mixed.to(out.dtype.element_ty), dim < size)


def attention(query: Tensor, metadata: AttentionMetadata, view: KVCacheView) -> Tensor:
    """As `reference.attention`."""
    rows, heads, size = query.shape
    keys, end = view.keys, view.keys.shape[2]
    splits = triton.cdiv(end, _KEYS_PER_SPLIT)
    out = query.new_empty(rows, heads * size)
    partial = query.new_empty(rows, heads, splits, size, dtype=torch.float32) if splits > 1 else out
    log_sums = query.new_empty(rows, heads, splits, dtype=torch.float32)
    mapped = view.slot_mapping is not None
    slot_mapping = view.slot_mapping if mapped else keys  # the kernel takes a pointer either way
    group, pdl = heads // keys.shape[1], supports_pdl(query.device)
    blocks = [max(16, triton.next_power_of_2(each)) for each in (group, size, min(end, _KEYS_PER_SPLIT))]
    _attention_kernel[(rows, keys.shape[1], splits)](
        query, keys, view.values, slot_mapping, partial, log_sums,
        end, metadata.query_len, query.stride(0), *keys.stride()[:2], 1 / math.sqrt(size), group, heads, size,
        *blocks, _KEYS_PER_SPLIT, splits, mapped, pdl,
        **pdl_option(pdl),
    )  # fmt: skip
    if splits > 1:
        constants = (size, splits, blocks[1], triton.next_power_of_2(splits), pdl)
        _merge_splits_kernel[(rows * heads,)](partial, log_sums, out, *constants, **pdl_option(pdl))
    return out
