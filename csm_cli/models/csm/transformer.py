"""A Llama-style stack: the mathematics is that of transformers' CSM, over a KV cache of our own.

Projections that read the same input are one matrix: q, k and v; gate and up. The weight of each norm is folded into
what reads it, so that a norm only scales. Layers are plain objects: calling an nn.Module costs as much as a small
kernel. Activations of all positions of all rows are [N, hidden].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.csm.config import Rope, StackConfig
from csm_cli.models.csm.kernels import Kernels, kernels_for
from csm_cli.models.csm.kernels.reference import LinearWeight
from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCache, KVCacheView, PrefillSlots

StackWeights = Mapping[str, Tensor]

_PAD = 16


class Linear:
    """A linear around a weight [out, in], kept as [in, out].

    On a CPU in float32 its rows lie a little apart, so that they do not meet in the same lines of the cache: with 16
    rows of input a product takes half the time that [out, in] takes on the bundled voice's shapes, and is a tenth
    faster on csm-1b's. Elsewhere it is a view.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous().T
        self.bias: Tensor | None = None
        if _is_plain(weight):
            wide = weight.new_empty(weight.shape[1], weight.shape[0] + _PAD)
            self.weight = wide[:, : len(weight)].copy_(weight.T)

    @property
    def lines(self) -> Tensor:
        return self.weight.T

    step = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.addmm(residual, x, self.weight)


def _is_plain(like: Tensor) -> bool:
    return like.device.type == "cpu" and like.dtype == torch.float32


class RMSNorm:
    """RMS norm without a weight, over [N, hidden]; what reads it multiplies by `gain`.

    PyTorch's is one kernel on CUDA and eight on a CPU. There x over its length is enough, kept from zero by `eps`:
    three kernels, of which a compiler makes one. Half precision takes PyTorch's, which computes in float32.
    """

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        self._shape, self.eps = (config.hidden,), config.eps
        self._short = _is_plain(like)
        self._least = config.hidden * config.eps
        self._shortest = like.new_full((1, 1), math.sqrt(self._least))
        self.gain = math.sqrt(config.hidden) if self._short else 1.0

    def __call__(self, x: Tensor) -> Tensor:
        if not self._short:
            return F.rms_norm(x, self._shape, None, self.eps)
        if torch.compiler.is_compiling():
            return x * (x.square().sum(-1, keepdim=True) + self._least).rsqrt()
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.hypot_(self._shortest)


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[D / 2] angular frequencies; llama3 scaling as in transformers' `modeling_rope_utils`, after Llama 3.1."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.factor == 1.0:
        return plain
    turns = rope.original_positions * plain / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, smooth.clamp(0, 1))


class RopeTable:
    """Rotations of pairs of neighbours; `paired` brings transformers' halves into that order.

    In float32 on a CPU a rotation is one complex product. Elsewhere it is `x * cos + flip(x) * sin`, sin signed.
    """

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        positions = torch.arange(config.positions + 1, dtype=torch.float32)  # one more for idle rows of a full cache
        angles = positions[:, None, None] * inverse_frequencies(config.rope, config.head_dim)  # [P, 1, D / 2]
        cos, sin = angles.cos(), angles.sin()
        pairs = torch.stack((torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1)), 1)
        self._pairs = pairs.to(like)
        self._complex = torch.complex(cos, sin) if _is_plain(like) else None

    def at(self, positions: Tensor) -> Tensor:
        """For positions [N]: complex [N, 1, D / 2], or cos and sin [N, 2, 1, D / 2, 2]."""
        if self._complex is None or torch.compiler.is_compiling():
            return self._pairs[positions]
        return self._complex.index_select(0, positions)


def paired(weight: Tensor, head_dim: int) -> Tensor:
    """[H * D, in], the D of each head in halves, to the same in pairs."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@dataclass(frozen=True)
class Steps:
    """What the layers of a stack do between their products."""

    norm: RMSNorm
    kernels: Kernels


class Layer:
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: StackConfig, weights: StackWeights, prefix: str, steps: Steps) -> None:
        def get(name: str) -> Tensor:
            return weights[f"{prefix}.{name}.weight"]

        turned = (paired(get(f"self_attn.{name}_proj"), config.head_dim) for name in "qk")
        qkv = torch.cat((*turned, get("self_attn.v_proj")))
        gate_up = torch.cat((get("mlp.gate_proj"), get("mlp.up_proj")))
        self._steps = steps
        self.qkv: LinearWeight = Linear(qkv.mul_(get("input_layernorm") * steps.norm.gain))
        self.out: LinearWeight = Linear(get("self_attn.o_proj"))
        self.gate_up: LinearWeight = Linear(gate_up.mul_(get("post_attention_layernorm") * steps.norm.gain))
        self.down: LinearWeight = Linear(get("mlp.down_proj"))

    def __call__(self, x: Tensor, place: AttentionMetadata, view: KVCacheView) -> Tensor:
        """The residual stream [B * S, hidden] to the same; `view`: this layer's part of the cache."""
        norm, kernels = self._steps.norm, self._steps.kernels
        query = kernels.turn(x, norm, self.qkv, place, view)
        x = kernels.onto(x, self.out, kernels.attend(query, place, view))
        return kernels.onto(x, self.down, kernels.gate(x, norm, self.gate_up))


class DecoderStack:
    """The layers of a backbone or depth decoder and the norm after them; what follows multiplies by `gain`."""

    def __init__(self, config: StackConfig, weights: StackWeights, prefix: str) -> None:
        self.config = config
        self.like = weights[f"{prefix}.norm.weight"]
        self.norm = RMSNorm(config, self.like)
        self._rope = RopeTable(config, self.like)
        self.gain = self.norm.gain
        self._kernels = kernels_for(self.like.device)
        steps = Steps(self.norm, self._kernels)
        self.layers = [Layer(config, weights, f"{prefix}.layers.{n}", steps) for n in range(config.layers)]

    def cache(self, rows: int, capacity: int) -> KVCache:
        return KVCache(self.config, rows, capacity, like=self.like)

    def place(self, where: PrefillSlots | DecodeSlots, views: Sequence[KVCacheView]) -> AttentionMetadata:
        """`views`: what `where` gives of a cache of this stack."""
        rope = self._rope.at(where.positions(self.like.device))
        return AttentionMetadata(where.length, rope, where.mask(self.like), views)

    def __call__(self, x: Tensor, cache: KVCache, where: PrefillSlots | DecodeSlots) -> Tensor:
        """[B, S, hidden] to the same, normed, before `gain` and the last norm's weight. `cache` is added to."""
        return self.norm(self.run(x.flatten(0, 1), self.place(where, where.views(cache)))).view(x.shape)

    def run(self, x: Tensor, place: AttentionMetadata) -> Tensor:
        """The residual stream [B * S, hidden] through every layer, not yet normed."""
        for layer, view in zip(self.layers, place.views, strict=True):
            x = layer(x, place, view)
        return x

    def read(self, x: Tensor, head: LinearWeight) -> Tensor:
        """What a head says of the residual stream [N, hidden]: [N, out]."""
        return self._kernels.read(x, self.norm, head)
