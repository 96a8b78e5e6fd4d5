"""Top-k sampling without a sort.

Codes are compared by integer keys, which order them as their logits do, of equal ones the lower code first. For a few
rows many programs count how many codes are likelier than each. For more rows one program each bisects the range of the
keys until it has the k-th likeliest code, then the sampled one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.fused_linear import pdl_option, release_next, supports_pdl, wait_for_previous

_MAX_RANKED_ROWS = 8
_RANKED_BLOCK, _COMPARED_BLOCK = 16, 512  # codes that a program ranks, and those that it compares them with at a time
_ZERO_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # low bits that are 0 in a logit as float32


@triton.jit
def _load_keys(logits, codes, codebook_size, zero_bits: tl.constexpr, shift: tl.constexpr):
    value = tl.load(logits + codes, codes < codebook_size, other=float("-inf")).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> zero_bits
    return ((ordered if zero_bits else ordered.to(tl.int64)) << shift) + ((1 << shift) - 1 - codes)


@triton.jit
def _logits_of(keys, zero_bits: tl.constexpr, shift: tl.constexpr):
    ordered = ((keys >> shift) << zero_bits).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered) >> zero_bits << zero_bits
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _store_code(
    code, codes, table, embedded, row, codebook_size, width: tl.constexpr, block_width: tl.constexpr
) -> None:
    code = tl.minimum(code.to(tl.int64), codebook_size - 1)  # logits that are not finite may yield an invalid code
    tl.store(codes + row, code)
    if width:
        dim = tl.arange(0, block_width)
        tl.store(embedded + row * width + dim, tl.load(table + code * width + dim, dim < width), dim < width)


@triton.jit
def _midpoint(low, high):
    """Between two integers, rounded down, whatever their signs."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _rank_kernel(
    logits,
    ranked,
    logits_stride,
    codebook_size: tl.constexpr,
    top_k: tl.constexpr,
    zero_bits: tl.constexpr,
    shift: tl.constexpr,
    ranked_block: tl.constexpr,
    compared_block: tl.constexpr,
    pdl: tl.constexpr,
) -> None:
    """Writes the keys of a block of codes to their ranks below top_k."""
    row = tl.program_id(0)
    codes = tl.program_id(1) * ranked_block + tl.arange(0, ranked_block)
    logits += row * logits_stride
    release_next(pdl)
    wait_for_previous(pdl)
    keys = _load_keys(logits, codes, codebook_size, zero_bits, shift)
    likelier = tl.zeros((ranked_block, compared_block), tl.int32)
    for start in tl.static_range(0, codebook_size, compared_block):
        compared = _load_keys(logits, start + tl.arange(0, compared_block), codebook_size, zero_bits, shift)
        likelier += (compared[None, :] > keys[:, None]).to(tl.int32)
    rank = tl.sum(likelier, 1)
    tl.store(ranked + row * top_k + rank, keys, (codes < codebook_size) & (rank < top_k))


@triton.jit
def _sample_ranked_kernel(
    ranked,
    uniform,
    temperature,
    rank_bias,
    codes,
    table,
    embedded,
    uniform_stride,
    bias_stride,
    codebook_size: tl.constexpr,
    top_k: tl.constexpr,
    width: tl.constexpr,
    zero_bits: tl.constexpr,
    shift: tl.constexpr,
    block_k: tl.constexpr,
    block_width: tl.constexpr,
    pdl: tl.constexpr,
) -> None:
    """width: of the embeddings, 0 if none are wanted."""
    row, rank = tl.program_id(0), tl.arange(0, block_k)
    release_next(pdl)
    wait_for_previous(pdl)
    keys = tl.load(ranked + row * top_k + rank, rank < top_k, other=0)
    bias = tl.load(rank_bias + row * bias_stride + rank, rank < top_k, other=float("-inf"))
    scores = _logits_of(keys, zero_bits, shift) / tl.load(temperature + row) + bias
    cdf = tl.cumsum(tl.exp(scores - tl.max(scores, 0)), 0)
    target = tl.load(uniform + row * uniform_stride) * tl.max(cdf, 0)
    sampled = tl.minimum(tl.sum((cdf < target).to(tl.int32), 0), top_k - 1)
    ids = (1 << shift) - 1 - (keys & ((1 << shift) - 1))
    code = tl.sum(tl.where(rank == sampled, ids, 0), 0)
    _store_code(code, codes, table, embedded, row, codebook_size, width, block_width)


@triton.jit
def _bisect_kernel(
    logits,
    uniform,
    temperature,
    rank_bias,
    codes,
    table,
    embedded,
    logits_stride,
    uniform_stride,
    bias_stride,
    codebook_size: tl.constexpr,
    top_k: tl.constexpr,
    width: tl.constexpr,
    zero_bits: tl.constexpr,
    shift: tl.constexpr,
    block_k: tl.constexpr,
    block_width: tl.constexpr,
    pdl: tl.constexpr,
) -> None:
    """Ranks and samples in one program."""
    row, rank, code = tl.program_id(0), tl.arange(0, block_k), tl.arange(0, 1 << shift)
    release_next(pdl)
    wait_for_previous(pdl)
    keys = _load_keys(logits + row * logits_stride, code, codebook_size, zero_bits, shift)
    bias = tl.load(rank_bias + row * bias_stride + rank, rank < top_k, other=float("-inf"))
    k = tl.sum((bias == 0).to(tl.int32), 0)
    best = tl.max(keys, 0)
    low, high = tl.min(keys, 0), best + 1
    middle = _midpoint(low, high)
    while middle != low:  # invariant: at least k keys are >= low, fewer than k are >= high
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = _midpoint(low, high)
    scores = _logits_of(keys, zero_bits, shift) / tl.load(temperature + row)
    weights = tl.where(keys >= low, tl.exp(scores - tl.max(scores, 0)), 0.0)
    target = tl.load(uniform + row * uniform_stride) * tl.sum(weights, 0)
    high = best + 1
    middle = _midpoint(low, high)
    while middle != low:  # invariant: the weights of keys >= low reach the target, those of keys >= high do not
        enough = tl.sum(tl.where(keys >= middle, weights, 0.0), 0) >= target
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = _midpoint(low, high)
    sampled = (1 << shift) - 1 - (low & ((1 << shift) - 1))
    _store_code(sampled, codes, table, embedded, row, codebook_size, width, block_width)


def sample_top_k(
    logits: Tensor, uniform: Tensor, temperature: Tensor, rank_bias: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference.sample_top_k`."""
    (rows, codebook_size), top_k, width = logits.shape, rank_bias.shape[1], table.shape[1]
    shift = (codebook_size - 1).bit_length()
    zero_bits = _ZERO_BITS[logits.dtype] if shift <= _ZERO_BITS[logits.dtype] else 0  # 0: keys of 64 bits
    codes = torch.empty(rows, dtype=torch.int64, device=logits.device)
    embedded = table.new_empty(rows, width)
    pdl = supports_pdl(logits.device)
    options = pdl_option(pdl)
    tensors = (uniform, temperature, rank_bias, codes, table, embedded)
    strides = (uniform.stride(0), rank_bias.stride(0))
    blocks = (triton.next_power_of_2(top_k), triton.next_power_of_2(max(1, width)))
    constants = (codebook_size, top_k, width, zero_bits, shift, *blocks, pdl)
    if rows > _MAX_RANKED_ROWS:
        _bisect_kernel[(rows,)](logits, *tensors, logits.stride(0), *strides, *constants, **options)
        return codes, embedded
    ranked = logits.new_empty(rows, top_k, dtype=torch.int32 if zero_bits else torch.int64)
    rank_constants = (codebook_size, top_k, zero_bits, shift, _RANKED_BLOCK, _COMPARED_BLOCK, pdl)
    grid = (rows, triton.cdiv(codebook_size, _RANKED_BLOCK))
    _rank_kernel[grid](logits, ranked, logits.stride(0), *rank_constants, **options)
    _sample_ranked_kernel[(rows,)](ranked, *tensors, *strides, *constants, num_warps=1, **options)
    return codes, embedded
