"""A Llama-style stack: the mathematics is that of transformers' CSM, over a KV cache of our own.

Projections that read the same input are one matrix: q, k and v; gate and up. The weight of each norm is folded into
what reads it, so that a norm only scales. Layers are plain objects: calling an nn.Module costs as much as a small
kernel. Activations of all positions of all rows are [N, hidden]: a linear over [B, S, hidden] takes a third longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.config import Rope, StackConfig
from csm_cli.model.cache import KvCache, Place, Scatter, Span, View

Weights = Mapping[str, Tensor]
Projection = Callable[[Tensor], Tensor]


class Linear:
    """A linear without overhead, around a weight [out, in] that is not copied."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Norm:
    """RMS norm without a weight, over [N, hidden].

    PyTorch's is one kernel on CUDA and eight on a CPU, where three do: x over its length, kept from zero by `eps`,
    is 4 us instead of 9. Half precision takes PyTorch's, which computes in float32.
    """

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        self._shape, self._eps = (config.hidden,), config.eps
        self._short = like.device.type == "cpu" and like.dtype == torch.float32
        self._shortest = like.new_full((1, 1), math.sqrt(config.hidden * config.eps))
        self._scale = 1 / math.sqrt(config.hidden)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._short:
            return F.rms_norm(x, self._shape, None, self._eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rms: Tensor = length.hypot_(self._shortest).mul_(self._scale)
        return x / rms


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[D / 2] angular frequencies; llama3 scaling as in transformers' `modeling_rope_utils`, after Llama 3.1."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.factor == 1.0:
        return plain
    turns = rope.original_positions * plain / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, smooth.clamp(0, 1))


class RopeTable:
    """cos and signed sin, [P, 1, 2, D / 2]: `x * cos + flip(x) * sin` turns halves as transformers does."""

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        positions = torch.arange(config.positions + 1, dtype=torch.float32)  # one more for idle rows of a full cache
        angles = positions[:, None] * inverse_frequencies(config.rope, config.head_dim)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.stack((cos, cos), 1)[:, None].to(like)
        self._sin = torch.stack((-sin, sin), 1)[:, None].to(like)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 1, 2, D / 2] of each."""
        return self._cos[positions], self._sin[positions]


class Layer:
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: StackConfig, weights: Weights, prefix: str) -> None:
        def get(*names: str) -> Tensor:
            return torch.cat([weights[f"{prefix}.{name}.weight"] for name in names])

        self.config = config
        self.qkv: Projection = Linear(
            get("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").mul_(get("input_layernorm"))
        )
        self.out: Projection = Linear(get("self_attn.o_proj"))
        self.gate_up: Projection = Linear(get("mlp.gate_proj", "mlp.up_proj").mul_(get("post_attention_layernorm")))
        self.down: Projection = Linear(get("mlp.down_proj"))
        self._turned = config.heads + config.kv_heads

    def __call__(self, x: Tensor, norm: Norm, place: Place, views: tuple[View, View]) -> Tensor:
        """[B * S, hidden] to the same; `views`: this layer's keys and values."""
        x = x + self.out(self._attention(self.qkv(norm(x)), place, views))
        gate, up = self.gate_up(norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def _attention(self, qkv: Tensor, place: Place, views: tuple[View, View]) -> Tensor:
        """[B * S, (H + 2 Hkv) * D] to [B * S, H * D]."""
        config, turned = self.config, self._turned
        parts = qkv.view(len(qkv), -1, 2, config.head_dim // 2)  # [B * S, H + 2 Hkv, 2, D / 2]
        pairs, (cos, sin) = parts[:, :turned], place.rope
        qk = torch.addcmul(pairs * cos, pairs.flip(-2), sin).view(len(qkv), turned, config.head_dim)
        keys = views[0].write(self._by_head(qk[:, config.heads :], place.length))
        values = views[1].write(self._by_head(qkv.view(len(qkv), -1, config.head_dim)[:, turned:], place.length))
        return self._mix(qk[:, : config.heads], keys, values, place)

    def _by_head(self, states: Tensor, length: int) -> Tensor:
        """[B * S, h, D] to [B, h, S, D]."""
        if length == 1:
            return states[:, :, None]
        return states.view(-1, length, *states.shape[1:]).transpose(1, 2)

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor, place: Place) -> Tensor:
        """[B * S, H, D] over [B, Hkv, C, D] gives [B * S, H * D].

        With one query position the heads that share keys stand in for a query axis, so keys are not repeated.
        """
        if place.length == 1:
            grouped = query.view(len(query), self.config.kv_heads, -1, self.config.head_dim)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=place.mask)
            return mixed.reshape(len(query), -1)
        query = self._by_head(query, place.length)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=place.mask, enable_gqa=True)
        return mixed.transpose(1, 2).reshape(len(mixed) * place.length, -1)


class Stack:
    """The layers of a backbone or depth decoder and the norm after them."""

    def __init__(self, config: StackConfig, weights: Weights, prefix: str) -> None:
        self.config = config
        self.layers = [Layer(config, weights, f"{prefix}.layers.{n}") for n in range(config.layers)]
        self.like = weights[f"{prefix}.norm.weight"]
        self._norm = Norm(config, self.like)
        self._rope = RopeTable(config, self.like)

    def cache(self, rows: int, capacity: int) -> KvCache:
        return KvCache(self.config, rows, capacity, like=self.like)

    def place(self, cache: KvCache, where: Span | Scatter) -> Place:
        device = self.like.device
        rope, mask = self._rope.at(where.positions(device)), where.mask(device)
        return Place(where.length, rope, mask, where.views(cache.keys), where.views(cache.values))

    def __call__(self, x: Tensor, cache: KvCache, where: Span | Scatter) -> Tensor:
        """[B, S, hidden] to the same, at unit RMS: what follows holds the last norm's weight. `cache` is added to."""
        return self.run(x.flatten(0, 1), self.place(cache, where)).view(x.shape)

    def run(self, x: Tensor, place: Place) -> Tensor:
        """The same for [B * S, hidden]."""
        for layer, keys, values in zip(self.layers, place.keys, place.values, strict=True):
            x = layer(x, self._norm, place, (keys, values))
        return self._norm(x)
