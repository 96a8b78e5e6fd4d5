"""Mimi's transformer: causal attention over a sliding window whose keys and values are carried between chunks."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.matmul import linear, pack_weight, rowwise

if TYPE_CHECKING:
    from csm_cli.models.mimi.config import TransformerConfig
    from csm_cli.models.mimi.streaming_state import StreamingState


RotaryTable = tuple[Tensor, Tensor]


class MimiTransformer(nn.Module):
    """[B, N, C] -> [B, N, C]; positions go on from chunk to chunk, each row's from where it is."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.layers)])

    def arrange(self) -> None:
        """Lays the loaded weights out as they are computed with."""
        for part in self.modules():
            if isinstance(part, (_Attention, _Mlp)):
                part.arrange()

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        if not self.layers:
            return x
        carried = self.config.window - 1 if self in memory else 0
        (start,) = memory.get(self) or (x.new_zeros(len(x), 1),)  # [B, 1]
        memory[self] = (start + x.shape[1],)
        steps = torch.arange(-carried, x.shape[1], device=x.device)
        rotation = self._rotation(start + steps[carried:])
        mask = _mask(start, steps, carried, self.config.window)
        for layer in self.layers:
            x = layer(x, rotation, mask, memory)
        return x

    @cached_property
    def _frequencies(self) -> Tensor:
        """[D / 2] of RoPE, angular."""
        steps = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32)
        weight: Tensor = next(self.parameters())
        return (1.0 / self.config.theta ** (steps / self.config.head_dim)).to(weight.device)

    def _rotation(self, positions: Tensor) -> RotaryTable:
        """RoPE's cosines and sines [B, 1, N, D] of positions [B, N], the sines of the first half of D negative."""
        angles = positions[:, None, :, None] * self._frequencies
        cos, sin = rowwise(torch.cos, angles), rowwise(torch.sin, angles)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _mask(start: Tensor, steps: Tensor, carried: int, window: int) -> Tensor:
    """What is added where a chunk's positions attend to the keys carried and its own: [B, 1, N, carried + N].

    In rows of a multiple of 8 numbers, without which CUDA's attention copies it in every layer.
    """
    wide = F.pad(steps, (0, -len(steps) % 8))
    distance = steps[carried:, None] - wide
    seen = (distance >= 0) & (distance < window) & (start[:, :, None, None] + wide >= 0)
    return torch.zeros_like(seen, dtype=start.dtype).masked_fill_(~seen, -torch.inf)[..., : len(steps)]


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.self_attn_layer_scale = _Scale(config.hidden)
        self.mlp_layer_scale = _Scale(config.hidden)

    def forward(self, x: Tensor, rotation: RotaryTable, mask: Tensor, memory: StreamingState) -> Tensor:
        x = self.self_attn_layer_scale(x, self.self_attn(self.input_layernorm(x), rotation, mask, memory))
        y: Tensor = self.mlp_layer_scale(x, self.mlp(self.post_attention_layernorm(x)))
        return y


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)

    def arrange(self) -> None:
        """Puts what reads the input into one matrix, of which its parts become views."""
        self.o_proj.weight.data = pack_weight(self.o_proj.weight)
        parts = self.q_proj, self.k_proj, self.v_proj
        self._joined = pack_weight(torch.cat([part.weight for part in parts]))
        for part, own in zip(parts, torch.split(self._joined, [len(part.weight) for part in parts]), strict=True):
            part.weight.data = own

    def forward(self, x: Tensor, rotation: RotaryTable, mask: Tensor, memory: StreamingState) -> Tensor:
        config = self.config
        heads = linear(x, self._joined).view(*x.shape[:2], -1, config.head_dim).transpose(1, 2)  # [B, H, N, D]
        turned, value = torch.split(heads, [config.heads + config.kv_heads, config.kv_heads], dim=1)
        query, key = torch.split(_rotate(turned, rotation), [config.heads, config.kv_heads], dim=1)
        if self in memory:
            past = memory[self]
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        memory[self] = _newest(key, config.window - 1), _newest(value, config.window - 1)
        y = F.scaled_dot_product_attention(
            query, key, value, mask, enable_gqa=config.heads != config.kv_heads
        )  # [B, H, N, D]
        return linear(y.transpose(1, 2).flatten(2), self.o_proj.weight)


def _newest(states: Tensor, count: int) -> Tensor:
    """[B, H, count, D]: the last ones, after zeros where there are too few."""
    kept = states[:, :, max(0, states.shape[2] - count) :]
    return F.pad(kept, (0, 0, count - kept.shape[2], 0)) if kept.shape[2] < count else kept


def _rotate(x: Tensor, rotation: RotaryTable) -> Tensor:
    cos, sin = rotation
    y = x * cos
    half = x.shape[-1] // 2
    y[..., :half].addcmul_(x[..., half:], sin[..., :half])
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


class _Mlp(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.fc2 = nn.Linear(config.intermediate, config.hidden, bias=False)

    def arrange(self) -> None:
        for part in (self.fc1, self.fc2):
            part.weight.data = pack_weight(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        return linear(rowwise(F.gelu, linear(x, self.fc1.weight)), self.fc2.weight)


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(residual, x, self.scale)
