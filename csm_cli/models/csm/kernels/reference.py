"""What every kernel computes, in PyTorch: used wherever Triton is not, and the reference of its tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.csm.kv_cache import AttentionMetadata, KVCacheView
from csm_cli.models.csm.layers import LinearWeight, RMSNorm

NormLinear = Callable[[Tensor, RMSNorm, LinearWeight], Tensor]
QkvRope = Callable[[Tensor, RMSNorm, LinearWeight, AttentionMetadata, KVCacheView], Tensor]
Attention = Callable[[Tensor, AttentionMetadata, KVCacheView], Tensor]
LinearAdd = Callable[[Tensor, LinearWeight, Tensor], Tensor]
SampleTopK = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def norm_linear(x: Tensor, norm: RMSNorm, linear: LinearWeight) -> Tensor:
    """RMS norm and projection: the residual stream [N, hidden] to [N, out]."""
    return linear(norm(x))


def linear_add(residual: Tensor, linear: LinearWeight, x: Tensor) -> Tensor:
    """Projection of x [N, in], added to the residual stream [N, hidden]."""
    return linear.add_to(residual, x)


def qkv_rope(x: Tensor, norm: RMSNorm, linear: LinearWeight, metadata: AttentionMetadata, view: KVCacheView) -> Tensor:
    """RMS norm, q/k/v projection of the residual stream [N, hidden], RoPE on queries and keys; N = B * S.

    Writes keys and values to `view`; returns the queries [N, H, D].
    """
    kv_heads, size = view.target.shape[1], view.target.shape[3]  # 2 Hkv, D
    states = linear(norm(x)).view(len(x), -1, size)  # [N, H + 2 Hkv, D]
    heads = states.shape[1] - kv_heads
    states = apply_rope(states, heads + kv_heads // 2, metadata.rope)
    view.write(split_heads(states[:, heads:], metadata.query_len))
    return states[:, :heads]


def attention(query: Tensor, metadata: AttentionMetadata, view: KVCacheView) -> Tensor:
    """Scaled dot product attention of queries [N, H, D] over the view's keys and values; [N, H * D].

    With one query position the heads that share keys become the query axis, so keys are not repeated.
    """
    if metadata.query_len == 1:
        grouped = query.view(len(query), view.keys.shape[1], -1, query.shape[2])
        mixed = F.scaled_dot_product_attention(grouped, view.keys, view.values, attn_mask=metadata.mask)
        return mixed.reshape(len(query), -1)
    query = split_heads(query, metadata.query_len)
    mixed = F.scaled_dot_product_attention(query, view.keys, view.values, attn_mask=metadata.mask, enable_gqa=True)
    return mixed.transpose(1, 2).reshape(len(mixed) * metadata.query_len, -1)


def apply_rope(states: Tensor, heads: int, rope: Tensor) -> Tensor:
    """[N, h, D] with the first `heads` heads rotated, perhaps in place."""
    pairs = states.view(*states.shape[:2], -1, 2)[:, :heads]
    if rope.is_complex():
        torch.view_as_complex(pairs).mul_(rope)
        return states
    cos, sin = rope.unbind(1)
    rotated = torch.addcmul(pairs * cos, pairs.flip(-1), sin).flatten(2)
    return torch.cat((rotated, states[:, heads:]), 1)


def split_heads(states: Tensor, query_len: int) -> Tensor:
    """[B * S, h, D] to [B, h, S, D]."""
    if query_len == 1:
        return states[:, :, None]
    return states.view(-1, query_len, *states.shape[1:]).transpose(1, 2)


def swiglu(x: Tensor, norm: RMSNorm, linear: LinearWeight) -> Tensor:
    """RMS norm, gate and up projection, SwiGLU: the residual stream [N, hidden] to [N, I]. linear: [2 I, hidden]."""
    gate, up = linear(norm(x)).chunk(2, -1)
    return F.silu(gate, inplace=True).mul_(up)


def sample_top_k(
    logits: Tensor, uniform: Tensor, temperature: Tensor, rank_bias: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Inverse CDF sampling over each row's top k: codes [B] and their embeddings [B, hidden].

    logits: [B, V]; uniform, temperature: [B, 1]; table: [V, hidden]. rank_bias: [B, k], added to the scores of the k
    likeliest codes in falling order: 0, then minus infinity beyond a row's own k.
    """
    k = rank_bias.shape[1]
    values, ids = logits.float().topk(k)  # [B, k], falling
    if k > 1:
        cdf = torch.addcdiv(rank_bias, values, temperature).softmax(-1).cumsum(-1)
        rank = torch.searchsorted(cdf, uniform * cdf[:, -1:]).clamp_(max=k - 1)  # clamped for logits that are NaN
        ids = ids.gather(-1, rank)
    codes = ids[:, 0]
    return codes, table.index_select(0, codes)
