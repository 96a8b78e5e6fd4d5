"""What every kernel does, in PyTorch: used wherever Triton is not, and what Triton's are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView


class LinearWeight(Protocol):
    """A linear. lines: its weight [out, in], of 8 bits if there is a step, [out], of each output."""

    @property
    def lines(self) -> Tensor: ...

    @property
    def step(self) -> Tensor | None: ...

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        ...

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to [N, out]."""
        ...


class NormWeight(Protocol):
    """An RMS norm without a weight."""

    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[N, hidden] to the same."""
        ...


NormLinear = Callable[[Tensor, NormWeight, LinearWeight], Tensor]
QkvRope = Callable[[Tensor, NormWeight, LinearWeight, AttentionMetadata, KVCacheView], Tensor]
Attention = Callable[[Tensor, AttentionMetadata, KVCacheView], Tensor]
LinearAdd = Callable[[Tensor, LinearWeight, Tensor], Tensor]
SampleTopK = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def norm_linear(x: Tensor, norm: NormWeight, projection: LinearWeight) -> Tensor:
    """The residual stream [N, hidden], normed, to [N, out]."""
    return projection(norm(x))


def linear_add(x: Tensor, projection: LinearWeight, mixed: Tensor) -> Tensor:
    """The residual stream [N, hidden] with a projection of `mixed` [N, in] added."""
    return projection.onto(x, mixed)


def qkv_rope(
    x: Tensor, norm: NormWeight, projection: LinearWeight, place: AttentionMetadata, view: KVCacheView
) -> Tensor:
    """Queries, keys and values of the residual stream [N, hidden], normed; queries and keys are turned.

    Keys and values go to where `view` says; the queries [N, H, D] come back. N is B * S, positions of rows.
    """
    kept, size = view.new.shape[1], view.new.shape[3]  # 2 Hkv, D
    states = projection(norm(x)).view(len(x), -1, size)  # [N, H + 2 Hkv, D]
    count = states.shape[1] - kept
    states = apply_rope(states, count + kept // 2, place.rope)
    view.write(split_heads(states[:, count:], place.length))
    return states[:, :count]


def attention(query: Tensor, place: AttentionMetadata, view: KVCacheView) -> Tensor:
    """[N, H, D] over what is visible gives [N, H * D].

    With one query position the heads that share keys stand in for a query axis, so keys are not repeated. On a CPU
    two products and a softmax instead take about as long (of a whole frame of one row 0.93 to 1.0).
    """
    if place.length == 1:
        grouped = query.view(len(query), view.keys.shape[1], -1, query.shape[2])
        mixed = F.scaled_dot_product_attention(grouped, view.keys, view.values, attn_mask=place.mask)
        return mixed.reshape(len(query), -1)
    query = split_heads(query, place.length)
    mixed = F.scaled_dot_product_attention(query, view.keys, view.values, attn_mask=place.mask, enable_gqa=True)
    return mixed.transpose(1, 2).reshape(len(mixed) * place.length, -1)


def apply_rope(heads: Tensor, count: int, rope: Tensor) -> Tensor:
    """[N, h, D], of which the first `count` heads are turned, perhaps in place."""
    pairs = heads.view(*heads.shape[:2], -1, 2)[:, :count]
    if rope.is_complex():
        torch.view_as_complex(pairs).mul_(rope)
        return heads
    cos, sin = rope.unbind(1)
    turned = torch.addcmul(pairs * cos, pairs.flip(-1), sin).flatten(2)
    return torch.cat((turned, heads[:, count:]), 1)


def split_heads(states: Tensor, length: int) -> Tensor:
    """[B * S, h, D] to [B, h, S, D]."""
    if length == 1:
        return states[:, :, None]
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)


def swiglu(x: Tensor, norm: NormWeight, projection: LinearWeight) -> Tensor:
    """The residual stream [N, hidden], normed, to gates and what they let through, [N, 2 I], and these to [N, I]."""
    gates, up = projection(norm(x)).chunk(2, -1)
    return F.silu(gates, inplace=True).mul_(up)


def sample_top_k(
    logits: Tensor, uniform: Tensor, temperature: Tensor, beyond: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """[B, V] logits, [B, 1] uniforms and temperatures to [B] codes: the inverse CDF over each row's likeliest codes.

    beyond: [B, k], added to the k likeliest, falling; minus infinity beyond a row's own k. The codes' rows of a table
    [V, hidden] come with them, [B, hidden].
    """
    widest = beyond.shape[1]
    values, ids = logits.float().topk(widest)  # [B, k], falling
    if widest > 1:
        cdf = torch.addcdiv(beyond, values, temperature).softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(cdf, uniform * cdf[:, -1:]).clamp_(max=widest - 1)  # beyond: not finite
        ids = ids.gather(-1, chosen)
    codes = ids[:, 0]
    return codes, table.index_select(0, codes)
