"""Mimi's transformer: causal attention over a sliding window whose keys and values are carried between chunks."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.config import TransformerConfig
from csm_cli.models.mimi.layers import linear, pack_weight, rowwise
from csm_cli.models.mimi.streaming import StreamingState

RotaryTable = tuple[Tensor, Tensor]


class MimiTransformer(nn.Module):
    """[B, N, C] -> [B, N, C]. Each row continues at its own position from chunk to chunk."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([_MimiLayer(config) for _ in range(config.layers)])

    def pack_weights(self) -> None:
        """Stores the loaded weights as they are multiplied."""
        for part in self.modules():
            if isinstance(part, (_MimiAttention, _MimiMlp)):
                part.pack_weights()

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        if not self.layers:
            return x
        carried = self.config.window - 1 if self in state else 0
        (start,) = state.get(self) or (x.new_zeros(len(x), 1),)  # [B, 1]
        state[self] = (start + x.shape[1],)
        offsets = torch.arange(-carried, x.shape[1], device=x.device)
        rotary = self._rotary(start + offsets[carried:])
        mask = _window_mask(start, offsets, carried, self.config.window)
        for layer in self.layers:
            x = layer(x, rotary, mask, state)
        return x

    @cached_property
    def _frequencies(self) -> Tensor:
        """[D / 2] of RoPE, angular."""
        dims = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32)
        weight: Tensor = next(self.parameters())
        return (1.0 / self.config.theta ** (dims / self.config.head_dim)).to(weight.device)

    def _rotary(self, positions: Tensor) -> RotaryTable:
        """RoPE's cosines and sines [B, 1, N, D] of positions [B, N]; the sines of the first half of D are negated."""
        angles = positions[:, None, :, None] * self._frequencies
        cos, sin = rowwise(torch.cos, angles), rowwise(torch.sin, angles)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _window_mask(start: Tensor, offsets: Tensor, carried: int, window: int) -> Tensor:
    """[B, 1, N, carried + N], added to the scores of a chunk's queries and the carried and new keys.

    Lines are padded to a multiple of 8: otherwise CUDA's attention copies the mask in every layer.
    """
    keys = F.pad(offsets, (0, -len(offsets) % 8))
    distance = offsets[carried:, None] - keys
    visible = (distance >= 0) & (distance < window) & (start[:, :, None, None] + keys >= 0)
    return torch.zeros_like(visible, dtype=start.dtype).masked_fill_(~visible, -torch.inf)[..., : len(offsets)]


class _MimiLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = _MimiAttention(config)
        self.mlp = _MimiMlp(config)
        self.input_layernorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.self_attn_layer_scale = _LayerScale(config.hidden)
        self.mlp_layer_scale = _LayerScale(config.hidden)

    def forward(self, x: Tensor, rotary: RotaryTable, mask: Tensor, state: StreamingState) -> Tensor:
        x = self.self_attn_layer_scale(x, self.self_attn(self.input_layernorm(x), rotary, mask, state))
        y: Tensor = self.mlp_layer_scale(x, self.mlp(self.post_attention_layernorm(x)))
        return y


class _MimiAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)

    def pack_weights(self) -> None:
        """Joins q, k and v into one matrix, of which they become views."""
        self.o_proj.weight.data = pack_weight(self.o_proj.weight)
        parts = self.q_proj, self.k_proj, self.v_proj
        self._qkv = pack_weight(torch.cat([part.weight for part in parts]))
        for part, view in zip(parts, torch.split(self._qkv, [len(part.weight) for part in parts]), strict=True):
            part.weight.data = view

    def forward(self, x: Tensor, rotary: RotaryTable, mask: Tensor, state: StreamingState) -> Tensor:
        config = self.config
        heads = linear(x, self._qkv).view(*x.shape[:2], -1, config.head_dim).transpose(1, 2)  # [B, H, N, D]
        query_key, value = torch.split(heads, [config.heads + config.kv_heads, config.kv_heads], dim=1)
        query, key = torch.split(_rotate(query_key, rotary), [config.heads, config.kv_heads], dim=1)
        if self in state:
            past_key, past_value = state[self]
            key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        state[self] = _last_positions(key, config.window - 1), _last_positions(value, config.window - 1)
        y = F.scaled_dot_product_attention(
            query, key, value, mask, enable_gqa=config.heads != config.kv_heads
        )  # [B, H, N, D]
        return linear(y.transpose(1, 2).flatten(2), self.o_proj.weight)


def _last_positions(states: Tensor, count: int) -> Tensor:
    """[B, H, count, D]: the last positions, after zeros if there are too few."""
    last = states[:, :, max(0, states.shape[2] - count) :]
    return F.pad(last, (0, 0, count - last.shape[2], 0)) if last.shape[2] < count else last


def _rotate(x: Tensor, rotary: RotaryTable) -> Tensor:
    cos, sin = rotary
    y = x * cos
    half = x.shape[-1] // 2
    y[..., :half].addcmul_(x[..., half:], sin[..., :half])
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


class _MimiMlp(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.fc2 = nn.Linear(config.intermediate, config.hidden, bias=False)

    def pack_weights(self) -> None:
        for part in (self.fc1, self.fc2):
            part.weight.data = pack_weight(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        return linear(rowwise(F.gelu, linear(x, self.fc1.weight)), self.fc2.weight)


class _LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels))

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(residual, x, self.scale)
