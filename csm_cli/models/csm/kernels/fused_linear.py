"""Products of a few rows with a weight [out, in], fused with the operators before and after them.

Such a product takes as long as reading the weight, if enough of it is in flight at once. For up to four rows a program
loads its whole part of the weight at once, before it waits for the previous kernel: weights never change. From five
rows on tensor cores multiply tile by tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView
from csm_cli.models.csm.layers import LinearWeight, RMSNorm

MAX_ROWS = 64
_MAX_SINGLE_TILE_ROWS = 4
_BYTES_PER_INPUT, _BYTES_PER_WARP = 8, 8192  # loaded at once by a program, of each input, and by each of its warps
_TILE_OUT, _TILE_IN, _STAGES = 64, 128, 4  # of a program that goes tile by tile
_SPLIT_K = 1024  # inputs of a program, where the inputs may be split
_REDUCE_BLOCK = 1024


@triton.jit
def wait_for_previous(pdl: tl.constexpr) -> None:
    """Waits for the previous kernel, if this one started early. Nothing that it writes may be read before."""
    if pdl:
        cuda.gdc_wait()


@triton.jit
def release_next(pdl: tl.constexpr) -> None:
    """Lets the next kernel start and run up to its own wait."""
    if pdl:
        cuda.gdc_launch_dependents()


@cache
def supports_pdl(device: torch.device) -> bool:
    """Whether kernels can start before the previous one ends: CUDA's programmatic dependent launch."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def pdl_option(pdl: bool) -> dict[str, Any]:
    return {"launch_pdl": True} if pdl else {}


@triton.jit
def gemv(
    x,
    x_stride,
    weight,
    scale,
    outputs,
    output_mask,
    rows,
    eps,
    k_start,
    in_features: tl.constexpr,
    k_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    single_tile: tl.constexpr,
    quantized: tl.constexpr,
    normed: tl.constexpr,
    pdl: tl.constexpr,
):
    """[block_out, block_rows]: rows of x times those `outputs` of the weight that are in the mask, in float32.

    quantized: the weight is int8 with a scale per output. normed: x is divided by its root mean square. k_start,
    k_size: the range of inputs.
    """
    column = tl.arange(0, block_rows)
    squares = tl.zeros((block_rows,), tl.float32)
    total = tl.zeros((outputs.shape[0], block_rows), tl.float32)
    release_next(pdl)
    if single_tile:
        k = tl.arange(0, block_in)
        k_mask = k < in_features
        tile = tl.load(
            weight + outputs[:, None] * in_features + k[None, :], output_mask[:, None] & k_mask[None, :], other=0
        )
        wait_for_previous(pdl)
        wide = tile.to(tl.float32)
        for row in tl.static_range(block_rows):
            values = tl.load(x + row * x_stride + k, k_mask & (row < rows), other=0.0).to(tl.float32)
            total = tl.where((column == row)[None, :], tl.sum(wide * values[None, :], 1)[:, None], total)
            if normed:
                squares = tl.where(column == row, tl.sum(values * values, 0), squares)
    else:
        wait_for_previous(pdl)
        for start in range(0, k_size, block_in):
            k = k_start + start + tl.arange(0, block_in)
            k_mask = k < tl.minimum(in_features, k_start + k_size)
            tile = tl.load(
                weight + outputs[:, None] * in_features + k[None, :], output_mask[:, None] & k_mask[None, :], other=0
            )
            x_mask = (column < rows)[:, None] & k_mask[None, :]
            values = tl.load(x + column[:, None] * x_stride + k[None, :], x_mask, other=0.0)
            total = tl.dot(tile.to(values.dtype), tl.trans(values), total, input_precision="ieee")
            if normed:
                squares += tl.sum(values.to(tl.float32) * values.to(tl.float32), 1)
    if normed:
        total *= (1 / tl.sqrt(squares / in_features + eps))[None, :]
    if quantized:
        total *= tl.load(scale + outputs, output_mask, other=0.0)[:, None]
    return total


@triton.jit
def split_pairs(total):
    """[2 n, R] to two of [n, R]: even and odd outputs."""
    half: tl.constexpr = total.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(total, (half, 2, total.shape[1])), (0, 2, 1)))


def launch_config(x: Tensor, linear: LinearWeight, allow_splits: bool = False) -> tuple[int, int, dict[str, Any]]:
    """The grid and arguments of a product of x [N, in], N of at most MAX_ROWS.

    The grid: programs, each for a block of outputs, times splits, each for a range of inputs; 1 unless `allow_splits`,
    which is for callers that add up partial sums. The arguments: the kernel's from `in_features` on, and Triton's.
    """
    rows, (out_features, in_features) = len(x), linear.weight.shape
    single_tile, splits = rows <= _MAX_SINGLE_TILE_ROWS, 1
    if single_tile:
        block_out = _BYTES_PER_INPUT // linear.weight.itemsize
        block_rows, block_in = triton.next_power_of_2(rows), triton.next_power_of_2(in_features)
        options = {"num_warps": min(8, max(2, _BYTES_PER_INPUT * block_in // _BYTES_PER_WARP))}
    else:
        block_out, block_rows, block_in = _TILE_OUT, max(16, triton.next_power_of_2(rows)), _TILE_IN
        options = {"num_warps": 4, "num_stages": _STAGES}
        splits = triton.cdiv(in_features, _SPLIT_K) if allow_splits else 1
    k_size = triton.cdiv(triton.cdiv(in_features, splits), block_in) * block_in if splits > 1 else in_features
    pdl = supports_pdl(x.device)
    arguments = options | pdl_option(pdl)
    arguments |= {
        "in_features": in_features,
        "k_size": k_size,
        "block_rows": block_rows,
        "block_in": block_in,
        "single_tile": single_tile,
        "quantized": linear.scale is not None,
        "pdl": pdl,
        "block_out": block_out,
    }
    return triton.cdiv(out_features, block_out), splits, arguments


@triton.jit
def _linear_kernel(
    x,
    x_stride,
    weight,
    scale,
    residual,
    out,
    rows,
    eps,
    out_features: tl.constexpr,
    normed: tl.constexpr,
    add_residual: tl.constexpr,
    in_features: tl.constexpr,
    k_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    single_tile: tl.constexpr,
    quantized: tl.constexpr,
    pdl: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    outputs = tl.program_id(0) * block_out + tl.arange(0, block_out)
    total = gemv(
        x, x_stride, weight, scale, outputs, outputs < out_features, rows, eps, tl.program_id(1) * k_size,
        in_features, k_size, block_rows, block_in, single_tile, quantized, normed, pdl,
    )  # fmt: skip
    row = tl.arange(0, block_rows)[None, :]
    offsets, mask = row * out_features + outputs[:, None], (row < rows) & (outputs < out_features)[:, None]
    out += tl.program_id(1) * rows * out_features
    if add_residual:
        total += tl.load(residual + offsets, mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask)


@triton.jit
def _sum_splits_kernel(
    partial, residual, out, size, splits: tl.constexpr, block: tl.constexpr, pdl: tl.constexpr
) -> None:
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    mask = offsets < size
    release_next(pdl)
    wait_for_previous(pdl)
    total = tl.load(residual + offsets, mask, other=0.0).to(tl.float32)
    for split in tl.static_range(splits):
        total += tl.load(partial + split * size + offsets, mask, other=0.0)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask)


def norm_linear(x: Tensor, norm: RMSNorm, linear: LinearWeight) -> Tensor:
    """As `reference.norm_linear`."""
    out, (programs, _, arguments) = x.new_empty(len(x), len(linear.weight)), launch_config(x, linear)
    _linear_kernel[(programs, 1)](
        x, x.stride(0), linear.weight, linear.scale, None, out, len(x), norm.eps,
        len(linear.weight), True, False, **arguments,
    )  # fmt: skip
    return out


def linear_add(residual: Tensor, linear: LinearWeight, x: Tensor) -> Tensor:
    """As `reference.linear_add`."""
    programs, splits, arguments = launch_config(x, linear, allow_splits=True)
    out = sums = torch.empty_like(residual)
    if splits > 1:
        sums = residual.new_empty(splits, *residual.shape, dtype=torch.float32)
    _linear_kernel[(programs, splits)](
        x, x.stride(0), linear.weight, linear.scale, residual if splits == 1 else None, sums, len(x), 0.0,
        len(linear.weight), False, splits == 1, **arguments,
    )  # fmt: skip
    if splits > 1:
        pdl, size = supports_pdl(residual.device), residual.numel()
        grid = (triton.cdiv(size, _REDUCE_BLOCK),)
        _sum_splits_kernel[grid](sums, residual, out, size, splits, _REDUCE_BLOCK, pdl, **pdl_option(pdl))
    return out


@triton.jit
def _swiglu_kernel(
    x,
    x_stride,
    weight,
    scale,
    out,
    rows,
    eps,
    width: tl.constexpr,
    in_features: tl.constexpr,
    k_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    single_tile: tl.constexpr,
    quantized: tl.constexpr,
    pdl: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    """width: I. A program's outputs alternate between gate and up."""
    index = tl.arange(0, block_out)
    unit = tl.program_id(0) * (block_out // 2) + index // 2
    total = gemv(
        x, x_stride, weight, scale, unit + (index % 2) * width, unit < width, rows, eps, 0,
        in_features, k_size, block_rows, block_in, single_tile, quantized, True, pdl,
    )  # fmt: skip
    gate, up = split_pairs(total)  # [block_out / 2, R]
    unit = (tl.program_id(0) * (block_out // 2) + tl.arange(0, block_out // 2))[:, None]
    row = tl.arange(0, block_rows)[None, :]
    value = gate / (1 + tl.exp(-gate)) * up
    tl.store(out + row * width + unit, value.to(out.dtype.element_ty), (row < rows) & (unit < width))


def swiglu(x: Tensor, norm: RMSNorm, linear: LinearWeight) -> Tensor:
    """As `reference.swiglu`."""
    width = linear.weight.shape[0] // 2
    out = x.new_empty(len(x), width)
    programs, _, arguments = launch_config(x, linear)
    _swiglu_kernel[(programs,)](x, x.stride(0), linear.weight, linear.scale, out, len(x), norm.eps, width, **arguments)
    return out


@triton.jit
def _qkv_rope_kernel(
    x,
    x_stride,
    weight,
    scale,
    rope,
    query,
    cache,
    slot_mapping,
    rows,
    eps,
    query_len,
    batch_stride,
    head_stride,
    position_stride,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    mapped: tl.constexpr,
    in_features: tl.constexpr,
    k_size: tl.constexpr,
    block_rows: tl.constexpr,
    block_in: tl.constexpr,
    single_tile: tl.constexpr,
    quantized: tl.constexpr,
    pdl: tl.constexpr,
    block_out: tl.constexpr,
) -> None:
    """A block of interleaved pairs of queries, keys or values. heads: H; kv_heads: 2 Hkv; half: D / 2."""
    outputs = tl.program_id(0) * block_out + tl.arange(0, block_out)
    total = gemv(
        x, x_stride, weight, scale, outputs, outputs < (heads + kv_heads) * 2 * half, rows, eps, 0,
        in_features, k_size, block_rows, block_in, single_tile, quantized, True, pdl,
    )  # fmt: skip
    even, odd = split_pairs(total)  # [block_out / 2, R]
    pair = (tl.program_id(0) * (block_out // 2) + tl.arange(0, block_out // 2))[:, None]
    row = tl.arange(0, block_rows)[None, :]
    head, index = pair // half, pair % half
    mask = (row < rows) & (head < heads + kv_heads)
    rotated = mask & (head < heads + kv_heads // 2)
    table = rope + row * 4 * half + 2 * index  # [2, D / 2, 2]: cosines twice, then -sines and sines
    cos = tl.load(table, rotated, other=1.0).to(tl.float32)
    sin = tl.load(table + 2 * half + 1, rotated, other=0.0).to(tl.float32)
    first, second = even * cos - odd * sin, odd * cos + even * sin
    target = query + (row * heads + head) * 2 * half + 2 * index
    query_mask = mask & (head < heads)
    tl.store(target, first.to(query.dtype.element_ty), query_mask)
    tl.store(target + 1, second.to(query.dtype.element_ty), query_mask)
    batch = (row // query_len).to(tl.int64)
    position = tl.load(slot_mapping + batch, row < rows, other=0) if mapped else (row % query_len).to(tl.int64)
    target = cache + batch * batch_stride + (head - heads) * head_stride + position * position_stride + 2 * index
    cache_mask = mask & (head >= heads)
    tl.store(target, first.to(cache.dtype.element_ty), cache_mask)
    tl.store(target + 1, second.to(cache.dtype.element_ty), cache_mask)


def qkv_rope(x: Tensor, norm: RMSNorm, linear: LinearWeight, metadata: AttentionMetadata, view: KVCacheView) -> Tensor:
    """As `reference.qkv_rope`, for rope in cosines and sines."""
    cache, kv_heads, size = view.target, view.target.shape[1], view.target.shape[3]
    heads = linear.weight.shape[0] // size - kv_heads
    query = x.new_empty(len(x), heads, size)
    mapped = view.slot_mapping is not None
    slot_mapping = view.slot_mapping if mapped else cache  # the kernel takes a pointer either way
    programs, _, arguments = launch_config(x, linear)
    _qkv_rope_kernel[(programs,)](
        x, x.stride(0), linear.weight, linear.scale, metadata.rope, query, cache, slot_mapping,
        len(x), norm.eps, metadata.query_len, *cache.stride()[:3],
        heads=heads, kv_heads=kv_heads, half=size // 2, mapped=mapped, **arguments,
    )  # fmt: skip
    return query
