"""Sampling without a sort, which takes 15 us.

Codes are told apart by integers that order them as their logits do, of equal ones the lower code first. For a few rows
many programs count how many codes are likelier than each: 6 us for one row, 40 for 32. For more rows a program each
halves the range of these integers until the kth likeliest code, then the drawn one is found: 14 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm_cli.models.csm.kernels.gemv import begins_early, early_option, release, wait

_MOST_RANKED = 8  # rows
_OWN, _OTHERS = 16, 512  # codes that a program ranks, and those that it compares them with at a time
_DROPPED = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}  # bits that are zero in the float32 of a logit


@triton.jit
def _keys(logits, at, count, dropped: tl.constexpr, shift: tl.constexpr):
    value = tl.load(logits + at, at < count, other=float("-inf")).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> dropped
    return ((ordered if dropped else ordered.to(tl.int64)) << shift) + ((1 << shift) - 1 - at)


@triton.jit
def _value(keys, dropped: tl.constexpr, shift: tl.constexpr):
    ordered = ((keys >> shift) << dropped).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered) >> dropped << dropped
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _tell(code, codes, table, embedded, row, count, width: tl.constexpr, block_width: tl.constexpr) -> None:
    code = tl.minimum(code.to(tl.int64), count - 1)  # logits that are not finite may choose what is no code
    tl.store(codes + row, code)
    if width:
        at = tl.arange(0, block_width)
        tl.store(embedded + row * width + at, tl.load(table + code * width + at, at < width), at < width)


@triton.jit
def _middle(low, high):
    """Between two integers, rounded down, whatever their signs."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _rank(
    logits,
    likely,
    row_step,
    count: tl.constexpr,
    widest: tl.constexpr,
    dropped: tl.constexpr,
    shift: tl.constexpr,
    own: tl.constexpr,
    others: tl.constexpr,
    early: tl.constexpr,
) -> None:
    """Writes the keys of some codes to their ranks, those below `widest`."""
    row = tl.program_id(0)
    codes = tl.program_id(1) * own + tl.arange(0, own)
    logits += row * row_step
    release(early)
    wait(early)
    keys = _keys(logits, codes, count, dropped, shift)
    likelier = tl.zeros((own, others), tl.int32)
    for start in tl.static_range(0, count, others):
        beside = _keys(logits, start + tl.arange(0, others), count, dropped, shift)
        likelier += (beside[None, :] > keys[:, None]).to(tl.int32)
    rank = tl.sum(likelier, 1)
    tl.store(likely + row * widest + rank, keys, (codes < count) & (rank < widest))


@triton.jit
def _choose(
    likely,
    uniform,
    temperature,
    beyond,
    codes,
    table,
    embedded,
    uniform_step,
    beyond_step,
    count: tl.constexpr,
    widest: tl.constexpr,
    width: tl.constexpr,
    dropped: tl.constexpr,
    shift: tl.constexpr,
    block_k: tl.constexpr,
    block_width: tl.constexpr,
    early: tl.constexpr,
) -> None:
    """width: of the table's rows, perhaps 0."""
    row, rank = tl.program_id(0), tl.arange(0, block_k)
    release(early)
    wait(early)
    keys = tl.load(likely + row * widest + rank, rank < widest, other=0)
    bias = tl.load(beyond + row * beyond_step + rank, rank < widest, other=float("-inf"))
    scores = _value(keys, dropped, shift) / tl.load(temperature + row) + bias
    cdf = tl.cumsum(tl.exp(scores - tl.max(scores, 0)), 0)
    aim = tl.load(uniform + row * uniform_step) * tl.max(cdf, 0)
    chosen = tl.minimum(tl.sum((cdf < aim).to(tl.int32), 0), widest - 1)
    ids = (1 << shift) - 1 - (keys & ((1 << shift) - 1))
    code = tl.sum(tl.where(rank == chosen, ids, 0), 0)
    _tell(code, codes, table, embedded, row, count, width, block_width)


@triton.jit
def _halve(
    logits,
    uniform,
    temperature,
    beyond,
    codes,
    table,
    embedded,
    logits_step,
    uniform_step,
    beyond_step,
    count: tl.constexpr,
    widest: tl.constexpr,
    width: tl.constexpr,
    dropped: tl.constexpr,
    shift: tl.constexpr,
    block_k: tl.constexpr,
    block_width: tl.constexpr,
    early: tl.constexpr,
) -> None:
    """Both at once, by one program."""
    row, rank, at = tl.program_id(0), tl.arange(0, block_k), tl.arange(0, 1 << shift)
    release(early)
    wait(early)
    keys = _keys(logits + row * logits_step, at, count, dropped, shift)
    bias = tl.load(beyond + row * beyond_step + rank, rank < widest, other=float("-inf"))
    k = tl.sum((bias == 0).to(tl.int32), 0)
    best = tl.max(keys, 0)
    low, high = tl.min(keys, 0), best + 1
    middle = _middle(low, high)
    while middle != low:  # at least k keys are no less than `low`, fewer no less than `high`
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = _middle(low, high)
    scores = _value(keys, dropped, shift) / tl.load(temperature + row)
    weights = tl.where(keys >= low, tl.exp(scores - tl.max(scores, 0)), 0.0)
    aim = tl.load(uniform + row * uniform_step) * tl.sum(weights, 0)
    high = best + 1
    middle = _middle(low, high)
    while middle != low:  # what is no less than `low` weighs as much as is aimed at, what is no less than `high` less
        enough = tl.sum(tl.where(keys >= middle, weights, 0.0), 0) >= aim
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        middle = _middle(low, high)
    _tell((1 << shift) - 1 - (low & ((1 << shift) - 1)), codes, table, embedded, row, count, width, block_width)


def sample_top_k(
    logits: Tensor, uniform: Tensor, temperature: Tensor, beyond: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """As `plain.draw`."""
    (rows, count), widest, width = logits.shape, beyond.shape[1], table.shape[1]
    shift = (count - 1).bit_length()
    dropped = _DROPPED[logits.dtype] if shift <= _DROPPED[logits.dtype] else 0  # 0: keys of 64 bits
    codes = torch.empty(rows, dtype=torch.int64, device=logits.device)
    embedded = table.new_empty(rows, width)
    early = begins_early(logits.device)
    how = early_option(early)
    given = (uniform, temperature, beyond, codes, table, embedded)
    steps = (uniform.stride(0), beyond.stride(0))
    blocks = (triton.next_power_of_2(widest), triton.next_power_of_2(max(1, width)))
    sizes = (count, widest, width, dropped, shift, *blocks, early)
    if rows > _MOST_RANKED:
        _halve[(rows,)](logits, *given, logits.stride(0), *steps, *sizes, **how)
        return codes, embedded
    likely = logits.new_empty(rows, widest, dtype=torch.int32 if dropped else torch.int64)
    ranks = (count, widest, dropped, shift, _OWN, _OTHERS, early)
    _rank[(rows, triton.cdiv(count, _OWN))](logits, likely, logits.stride(0), *ranks, **how)
    _choose[(rows,)](likely, *given, *steps, *sizes, num_warps=1, **how)
    return codes, embedded
