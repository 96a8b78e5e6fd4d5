"""Backbone and depth decoder: two Llama-style stacks over explicit KV caches, and the tables between them.

The mathematics is that of transformers' CsmForConditionalGeneration, the names those of its checkpoints on disk.
Projections that read the same input are one matrix: q, k and v; gate and up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.config import ModelConfig, Rope, StackConfig

Weights = Mapping[str, Tensor]


class KvCache:
    """Keys and values of every layer of one stack, [L, B, Hkv, C, D]; zeroed, since masked values are still read."""

    def __init__(self, config: StackConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]


@dataclass(frozen=True)
class Span:
    """The same consecutive positions, `start` to `end`, of the cache rows `first` to `last`."""

    first: int
    last: int
    start: int
    end: int

    def positions(self, device: torch.device) -> slice:
        return slice(self.start, self.end)

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        """[B, Hkv, C, D] with [b, Hkv, S, D] written; returns what is visible, [b, Hkv, end, D]."""
        rows = store[self.first : self.last]
        rows[:, :, self.start : self.end] = new
        return rows[:, :, : self.end]

    def mask(self, device: torch.device) -> Tensor | None:
        """[S, end] of what each position may see; None where that is everything."""
        length = self.end - self.start
        if length == 1:
            return None
        return torch.ones(length, self.end, dtype=torch.bool, device=device).tril(self.start)


@dataclass(frozen=True)
class Scatter:
    """One position per row: `at` [B], in cache rows 0 to B - 1, of which the first `extent` positions are looked at."""

    at: Tensor
    extent: int

    def positions(self, device: torch.device) -> Tensor:
        return self.at[:, None]

    def write(self, store: Tensor, new: Tensor) -> Tensor:
        """[B', Hkv, C, D] with [B, Hkv, 1, D] written; returns what is visible, [B, Hkv, extent, D]."""
        rows = store[: len(self.at)]
        index = self.at[:, None, None, None].expand(-1, new.shape[1], 1, new.shape[3])
        rows.scatter_(2, index, new)
        return rows[:, :, : self.extent]

    def mask(self, device: torch.device) -> Tensor:
        """[B, 1, 1, extent] of what each row may see."""
        return (torch.arange(self.extent, device=device) <= self.at[:, None])[:, None, None]


Place = Span | Scatter


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """[D / 2] angular frequencies; llama3 scaling as in transformers' `modeling_rope_utils`, after Llama 3.1."""
    plain = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.factor == 1.0:
        return plain
    turns = rope.original_positions * plain / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(plain / rope.factor, plain, smooth.clamp(0, 1))


class RopeTable(nn.Module):
    """cos and sign-folded sin, [P, 1, D]: `x * cos + roll(x, D / 2) * sin` turns halves as transformers does."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: StackConfig, dtype: torch.dtype) -> None:
        super().__init__()
        positions = torch.arange(config.positions + 1, dtype=torch.float32)  # one more for idle rows of a full cache
        angles = positions[:, None] * inverse_frequencies(config.rope, config.head_dim)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), -1)[:, None].to(dtype), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), -1)[:, None].to(dtype), persistent=False)

    def forward(self, place: Place) -> tuple[Tensor, Tensor]:
        """[S, 1, D] for a span, [B, 1, 1, D] for scattered rows."""
        positions = place.positions(self.cos.device)
        return self.cos[positions], self.sin[positions]


def linear(weight: Tensor) -> nn.Linear:
    """A bias-free linear around `weight` [out, in], which is not copied."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


class Layer(nn.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: StackConfig, weights: Weights, prefix: str) -> None:
        super().__init__()

        def get(*names: str) -> Tensor:
            return torch.cat([weights[f"{prefix}.{name}.weight"] for name in names])

        self.config = config
        self.attention_norm = nn.Parameter(get("input_layernorm"), requires_grad=False)
        self.qkv = linear(get("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
        self.out = linear(get("self_attn.o_proj"))
        self.mlp_norm = nn.Parameter(get("post_attention_layernorm"), requires_grad=False)
        self.gate_up = linear(get("mlp.gate_proj", "mlp.up_proj"))
        self.down = linear(get("mlp.down_proj"))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """[B, H, S, D] over [B, Hkv, C, D] gives [B, S, H * D].

        With one query position the heads that share keys stand in for a query axis, so keys are not repeated.
        """
        batch, heads, length, size = query.shape
        if length > 1:
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
            return mixed.transpose(1, 2).reshape(batch, length, heads * size)
        grouped = query.view(batch, self.config.kv_heads, -1, size)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(batch, 1, heads * size)

    def forward(
        self, x: Tensor, layer: tuple[Tensor, Tensor], place: Place, rope: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        config = self.config
        turned = config.heads + config.kv_heads
        normed = F.rms_norm(x, (config.hidden,), self.attention_norm, config.eps)
        qkv = self.qkv(normed).unflatten(-1, (turned + config.kv_heads, config.head_dim))  # [B, S, H + 2 Hkv, D]
        qk = qkv[:, :, :turned]
        qk = torch.addcmul(qk * rope[0], qk.roll(config.head_dim // 2, -1), rope[1]).transpose(1, 2)
        keys = place.write(layer[0], qk[:, config.heads :])
        values = place.write(layer[1], qkv[:, :, turned:].transpose(1, 2))
        x = x + self.out(self._attend(qk[:, : config.heads], keys, values, mask))
        gate, up = self.gate_up(F.rms_norm(x, (config.hidden,), self.mlp_norm, config.eps)).chunk(2, -1)
        y: Tensor = x + self.down(F.silu(gate) * up)
        return y


class Stack(nn.Module):
    """The layers of a backbone or depth decoder and the norm after them."""

    def __init__(self, config: StackConfig, weights: Weights, prefix: str) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, weights, f"{prefix}.layers.{n}") for n in range(config.layers))
        self.norm = nn.Parameter(weights[f"{prefix}.norm.weight"], requires_grad=False)
        self.rope = RopeTable(config, self.norm.dtype)

    def cache(self, rows: int, capacity: int) -> KvCache:
        return KvCache(self.config, rows, capacity, like=self.norm)

    def forward(self, x: Tensor, cache: KvCache, place: Place) -> Tensor:
        """[B, S, hidden] at `place`, of which the keys and values are added to `cache`; returns the same shape."""
        rope, mask = self.rope(place), place.mask(x.device)
        for index, layer in enumerate(self.layers):
            x = layer(x, (cache.keys[index], cache.values[index]), place, rope, mask)
        return F.rms_norm(x, (self.config.hidden,), self.norm, self.config.eps)


class _Cast(Mapping[str, Tensor]):
    """Weights as they are asked for, on one device in one dtype."""

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self._weights, self._device, self._dtype = weights, device, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].to(self._device, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class CsmModel(nn.Module):
    """Both stacks, their embeddings and heads.

    weights: tensors by transformers' on-disk names, in the shapes `config` gives (checked where they are read).
    """

    def __init__(self, config: ModelConfig, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        cast = _Cast(weights, device, dtype)
        self.config = config
        self.text_table = nn.Parameter(cast["embed_text_tokens.weight"], requires_grad=False)
        self.audio_table = nn.Parameter(cast["backbone_model.embed_tokens.embed_audio_tokens.weight"], False)
        self.backbone = Stack(config.backbone, cast, "backbone_model")
        self.head = linear(cast["lm_head.weight"][: config.codes])
        self.depth = Stack(config.depth, cast, "depth_decoder.model")
        self.projector = linear(cast["depth_decoder.model.inputs_embeds_projector.weight"])
        heads = cast["depth_decoder.codebooks_head.weight"][:, :, : config.codes]  # [K - 1, hidden, codes]
        self.depth_heads = nn.ModuleList(linear(head.T.contiguous()) for head in heads)
        # Table and projector are constant: the depth decoder's inputs are projected once.  [(K - 1) * V, hidden]
        depth_rows = cast["depth_decoder.model.embed_tokens.weight"][: (config.codebooks - 1) * config.vocab]
        self.depth_table = nn.Parameter(self.projector(depth_rows), requires_grad=False)
        self.to(device)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.audio_table.device

    def embed_frames(self, codes: Tensor) -> Tensor:
        """[..., K] codes to [..., hidden]: the sum of a frame's embeddings, one per codebook."""
        offsets = torch.arange(self.config.codebooks, device=codes.device) * self.config.vocab
        return F.embedding(codes + offsets, self.audio_table).sum(-2)

    def embed_rows(self, rows: Tensor) -> Tensor:
        """[S, K + 1] prompt rows, each a text id or a frame, to [S, hidden]."""
        text = rows[:, -1]
        is_text = text >= 0
        embedded = torch.empty(len(rows), self.config.backbone.hidden, dtype=self.text_table.dtype, device=rows.device)
        embedded[is_text] = F.embedding(text[is_text], self.text_table)
        embedded[~is_text] = self.embed_frames(rows[~is_text, :-1])
        return embedded
