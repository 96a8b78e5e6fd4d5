"""A Llama-style decoder stack: the mathematics of transformers' CSM, over an explicit KV cache.

Projections of the same input are one matrix: q, k and v; gate and up. The weight of each norm is folded into the
projection after it, so that a norm only scales. Layers are plain objects: calling an nn.Module costs as much as a small
kernel. Activations of all positions of all rows are [N, hidden], N = B * S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from csm_cli.models.csm.config import Rope, StackConfig
from csm_cli.models.csm.kernels import kernels_for
from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCache, KVCacheView, PrefillSlots
from csm_cli.models.csm.layers import Linear, LinearWeight, RMSNorm, is_cpu_float32

ReadWeight = Callable[[str], Tensor]  # by the name on disk


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[D / 2] angular frequencies; llama3 scaling as in transformers' `modeling_rope_utils`, after Llama 3.1."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.factor == 1.0:
        return plain
    rotations = rope.original_max_seq_len * plain / (2 * math.pi)
    smooth = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, smooth.clamp(0, 1))


class RopeTable:
    """Rotations of interleaved pairs; `interleave_halves` brings transformers' weights into that order.

    In float32 on a CPU a rotation is one complex product. Elsewhere it is `x * cos + flip(x) * sin`, sin signed.
    """

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        positions = torch.arange(config.max_seq_len + 1, dtype=torch.float32)  # + 1 for idle rows of a full cache
        angles = positions[:, None, None] * inverse_frequencies(config.rope, config.head_dim)  # [P, 1, D / 2]
        cos, sin = angles.cos(), angles.sin()
        pairs = torch.stack((torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1)), 1)
        self.pairs = pairs.to(like)
        self._complex = torch.complex(cos, sin) if is_cpu_float32(like) else None

    def at(self, positions: Tensor) -> Tensor:
        """For positions [N]: complex [N, 1, D / 2], or cos and sin [N, 2, 1, D / 2, 2]."""
        if self._complex is None or torch.compiler.is_compiling():
            return self.pairs[positions]
        return self._complex.index_select(0, positions)


def interleave_halves(weight: Tensor, head_dim: int) -> Tensor:
    """[H * D, in], the D of each head as two halves, to the same as interleaved pairs."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


class Layer:
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: StackConfig, read: ReadWeight, prefix: str, norm: RMSNorm) -> None:
        def get(name: str) -> Tensor:
            return read(f"{prefix}.{name}.weight")

        query_key = (interleave_halves(get(f"self_attn.{name}_proj"), config.head_dim) for name in "qk")
        qkv = torch.cat((*query_key, get("self_attn.v_proj")))
        gate_up = torch.cat((get("mlp.gate_proj"), get("mlp.up_proj")))
        self._norm, self._kernels = norm, kernels_for(qkv.device)
        self.qkv: LinearWeight = Linear(qkv.mul_(get("input_layernorm") * norm.gain))
        self.out: LinearWeight = Linear(get("self_attn.o_proj"))
        self.gate_up: LinearWeight = Linear(gate_up.mul_(get("post_attention_layernorm") * norm.gain))
        self.down: LinearWeight = Linear(get("mlp.down_proj"))

    def __call__(self, x: Tensor, metadata: AttentionMetadata, view: KVCacheView) -> Tensor:
        """The residual stream [N, hidden] to the same. view: this layer's part of the cache."""
        norm, kernels = self._norm, self._kernels
        query = kernels.qkv_rope(x, norm, self.qkv, metadata, view)
        x = kernels.linear_add(x, self.out, kernels.attention(query, metadata, view))
        return kernels.linear_add(x, self.down, kernels.swiglu(x, norm, self.gate_up))


class DecoderStack:
    """The layers of the backbone or the depth decoder, and the norm after them."""

    def __init__(self, config: StackConfig, read: ReadWeight, prefix: str) -> None:
        self.config = config
        self._like = read(f"{prefix}.norm.weight")
        self.norm = RMSNorm(config, self._like)
        self._rope = RopeTable(config, self._like)
        self._kernels = kernels_for(self._like.device)
        self.layers = [Layer(config, read, f"{prefix}.layers.{n}", self.norm) for n in range(config.layers)]

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        return KVCache(self.config, rows, capacity, like=self._like)

    def metadata(self, slots: PrefillSlots | DecodeSlots, views: Sequence[KVCacheView]) -> AttentionMetadata:
        """views: those of `slots` in a cache of this stack."""
        rope = self._rope.at(slots.position_ids(self._like.device))
        return AttentionMetadata(slots.query_len, rope, slots.mask(self._like), views)

    def __call__(self, x: Tensor, cache: KVCache, slots: PrefillSlots | DecodeSlots) -> Tensor:
        """[B, S, hidden] to the same, normed, before `norm.gain` and the last norm's weight. Writes to `cache`."""
        return self.norm(self.forward_layers(x.flatten(0, 1), self.metadata(slots, slots.views(cache)))).view(x.shape)

    def forward_layers(self, x: Tensor, metadata: AttentionMetadata) -> Tensor:
        """The residual stream [N, hidden] through every layer, not yet normed."""
        for layer, view in zip(self.layers, metadata.views, strict=True):
            x = layer(x, metadata, view)
        return x

    def apply_head(self, x: Tensor, head: LinearWeight) -> Tensor:
        """The residual stream [N, hidden], normed, through an output head to [N, out]."""
        return self._kernels.norm_linear(x, self.norm, head)
