"""Sampling in one launch: the top k, softmax, running sum and choice of a row never leave one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _draw(
    logits,
    uniform,
    temperature,
    beyond,
    codes,
    logits_step,
    uniform_step,
    beyond_step,
    count: tl.constexpr,
    widest: tl.constexpr,
    block: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    at = tl.arange(0, block)
    value = tl.load(logits + row * logits_step + at, at < count, other=float("-inf")).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the numbers
    # Of equal logits the lower code first.
    keys = (ordered.to(tl.int64) << 32) | (block - 1 - at)
    if widest == 1:
        code = block - 1 - (tl.max(keys, 0) & 0xFFFFFFFF)
    else:
        best = tl.topk(keys, block_k)  # falling
        ids = block - 1 - (best & 0xFFFFFFFF)
        back = (best >> 32).to(tl.int32)
        likely = tl.where(back < 0, back ^ 0x7FFFFFFF, back).to(tl.float32, bitcast=True)
        rank = tl.arange(0, block_k)
        bias = tl.load(beyond + row * beyond_step + rank, rank < widest, other=float("-inf"))
        scores = likely / tl.load(temperature + row) + bias
        weights = tl.exp(scores - tl.max(scores, 0))
        cdf = tl.cumsum(weights, 0)
        aim = tl.load(uniform + row * uniform_step) * tl.max(cdf, 0)
        chosen = tl.minimum(tl.sum((cdf < aim).to(tl.int32), 0), widest - 1)
        code = tl.sum(tl.where(rank == chosen, ids, 0), 0)
    tl.store(codes + row, tl.minimum(code, count - 1))  # logits that are not finite may choose what is no code


def draw(logits: Tensor, uniform: Tensor, temperature: Tensor, beyond: Tensor) -> Tensor:
    """As `plain.draw`."""
    rows, count = logits.shape
    widest = beyond.shape[1]
    codes = torch.empty(rows, dtype=torch.int64, device=logits.device)
    steps = (logits.stride(0), uniform.stride(0), beyond.stride(0))
    sizes = (count, widest, triton.next_power_of_2(count), triton.next_power_of_2(widest))
    _draw[(rows,)](logits, uniform, temperature, beyond, codes, *steps, *sizes)
    return codes
