"""What every kernel does, in PyTorch: used wherever Triton is not, and what Triton's are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.model.cache import View


class Projection(Protocol):
    """A linear."""

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        ...

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to [N, out]."""
        ...


class Scaling(Protocol):
    """An RMS norm without a weight."""

    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[N, hidden] to the same."""
        ...


Join = Callable[[Tensor, Projection, Tensor, Scaling], tuple[Tensor, Tensor]]
Turn = Callable[[Tensor, Tensor, View, int], Tensor]
Gate = Callable[[Tensor], Tensor]
Draw = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def join(x: Tensor, projection: Projection, mixed: Tensor, norm: Scaling) -> tuple[Tensor, Tensor]:
    """The residual stream [N, hidden] with a projection of `mixed` [N, in] added, and that again, normed."""
    x = projection.onto(x, mixed)
    return x, norm(x)


def turn(states: Tensor, rope: Tensor, view: View, length: int) -> Tensor:
    """Turns queries and keys, writes keys and values to where `view` says and returns the queries [N, H, D].

    states: [N, H + 2 Hkv, D], heads of queries, keys, values; overwritten perhaps. rope: as `RopeTable.at` gives it.
    length: S, positions per row; N is B * S.
    """
    kept = view.new.shape[1]  # 2 Hkv
    count = states.shape[1] - kept
    states = rotated(states, count + kept // 2, rope)
    view.write(by_head(states[:, count:], length))
    return states[:, :count]


def rotated(heads: Tensor, count: int, rope: Tensor) -> Tensor:
    """[N, h, D], of which the first `count` heads are turned, perhaps in place."""
    pairs = heads.view(*heads.shape[:2], -1, 2)[:, :count]
    if rope.is_complex():
        torch.view_as_complex(pairs).mul_(rope)
        return heads
    cos, sin = rope.unbind(1)
    turned = torch.addcmul(pairs * cos, pairs.flip(-1), sin).flatten(2)
    return torch.cat((turned, heads[:, count:]), 1)


def by_head(states: Tensor, length: int) -> Tensor:
    """[B * S, h, D] to [B, h, S, D]."""
    if length == 1:
        return states[:, :, None]
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)


def gate(gate_up: Tensor) -> Tensor:
    """[N, 2 I], gates and what they let through, to [N, I]; overwritten."""
    gates, up = gate_up.chunk(2, -1)
    return F.silu(gates, inplace=True).mul_(up)


def draw(logits: Tensor, uniform: Tensor, temperature: Tensor, beyond: Tensor) -> Tensor:
    """[B, V] logits, [B, 1] uniforms and temperatures to [B] codes: the inverse CDF over each row's likeliest codes.

    beyond: [B, k], added to the k likeliest, falling; minus infinity beyond a row's own k.
    """
    widest = beyond.shape[1]
    values, ids = logits.float().topk(widest)  # [B, k], falling
    if widest == 1:
        return ids[:, 0]
    cdf = torch.addcdiv(beyond, values, temperature).softmax(-1).cumsum(-1)
    chosen = torch.searchsorted(cdf, uniform * cdf[:, -1:]).clamp_(max=widest - 1)  # beyond: not finite
    return ids.gather(-1, chosen)[:, 0]


def product(x: Tensor, weight: Tensor, step: Tensor) -> Tensor:
    """[N, in] by a weight [out, in] of 8 bits, whose outputs are `step` [out] apart, to [N, out]."""
    return (F.linear(x, weight.to(x.dtype)) * step).to(x.dtype)
