"""RoPE of queries and keys and the write to the KV cache, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from csm_cli.model.cache import View


@triton.jit
def _turn(
    states,
    rope,
    query,
    new,
    index,
    length,
    row_step,
    head_step,
    position_step,
    heads: tl.constexpr,
    kept: tl.constexpr,
    pairs: tl.constexpr,
    block: tl.constexpr,
    indexed: tl.constexpr,
) -> None:
    """One head of one position. heads: H; kept: 2 Hkv."""
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < pairs
    source = states + (row * (heads + kept) + head) * 2 * pairs + 2 * at
    even = tl.load(source, inside, other=0.0)
    odd = tl.load(source + 1, inside, other=0.0)
    if head < heads + kept // 2:
        table = rope + row * 4 * pairs + 2 * at  # [2, D / 2, 2]: cosines twice, then -sines and sines
        cos = tl.load(table, inside, other=0.0).to(tl.float32)
        sin = tl.load(table + 2 * pairs + 1, inside, other=0.0).to(tl.float32)
        e, o = even.to(tl.float32), odd.to(tl.float32)
        kind = even.dtype  # products with cosines are rounded where PyTorch rounds them
        even = ((e * cos).to(kind).to(tl.float32) - o * sin).to(kind)
        odd = ((o * cos).to(kind).to(tl.float32) + e * sin).to(kind)
    if head < heads:
        target = query + (row * heads + head) * 2 * pairs + 2 * at
    else:
        batch = (row // length).to(tl.int64)
        position = tl.load(index + batch) if indexed else (row % length).to(tl.int64)
        target = new + batch * row_step + (head - heads) * head_step + position * position_step + 2 * at
    tl.store(target, even, inside)
    tl.store(target + 1, odd, inside)


def turn(states: Tensor, rope: Tensor, view: View, length: int) -> Tensor:
    """As `plain.turn`, for rope in cosines and sines."""
    new, kept = view.new, view.new.shape[1]
    count, pairs = states.shape[1] - kept, states.shape[2] // 2
    query = states.new_empty(len(states), count, states.shape[2])
    index = new if view.index is None else view.index  # a pointer is wanted either way
    sizes = (count, kept, pairs, triton.next_power_of_2(pairs), view.index is not None)
    _turn[(len(states), count + kept)](states, rope, query, new, index, length, *new.stride()[:3], *sizes)
    return query
