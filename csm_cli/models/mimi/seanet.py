"""Mimi's convolutional encoder and decoder (SEANet, arXiv 2210.13438), over chunks [B, N, C] and a streaming state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csm_cli.models.mimi.layers import CausalConv, CausalConvTranspose, Elu, MonoConv
from csm_cli.models.mimi.streaming import StreamingState

if TYPE_CHECKING:
    from csm_cli.models.mimi.config import CodecConfig

_MAX_GROUP = 12  # positions of which `MonoConv` computes one channel at a time
_MAX_BATCHED_SIZE = 1 << 14  # numbers of a row; larger ones would not fit a CPU's cache together


class Residual(nn.Module):
    """Two convolutions through a bottleneck, added to their input: [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        narrow = channels // config.compress
        self.block = nn.ModuleList(
            [
                Elu(in_place=False),
                CausalConv((channels, narrow), config.residual_kernel, dilation=dilation),
                Elu(),
                CausalConv((narrow, channels), 1),
            ]
        )
        self.shortcut = CausalConv((channels, channels), 1) if config.conv_shortcut else None

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        y = _apply(self.block, x, state)
        return y + (x if self.shortcut is None else self.shortcut(x, state))


class SeanetStack(nn.Module):
    """Layers one after another; their indices are part of the on-disk tensor names."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        return _apply(self.layers, x, state)

    def forward_cached(self, x: Tensor, state: StreamingState) -> Tensor:
        """The same for up-sampling layers on a CPU: from the layer on where rows are too large for the cache together,
        each row takes the remaining layers by itself."""
        for index, layer in enumerate(self.layers):
            if x[0].numel() > _MAX_BATCHED_SIZE:
                return self._forward_rows(self.layers[index:], x, state)
            x = layer(x, state)
        return x

    @staticmethod
    def _forward_rows(layers: Iterable[nn.Module], x: Tensor, state: StreamingState) -> Tensor:
        modules = {part for layer in layers for part in layer.modules()}
        states = [
            {
                module: tuple(part[row : row + 1] for part in parts)
                for module, parts in state.items()
                if module in modules
            }
            for row in range(len(x))
        ]
        y = torch.cat([_apply(layers, row[None], each) for row, each in zip(x, states, strict=True)])
        for module in states[0]:
            state[module] = tuple(torch.cat(parts) for parts in zip(*(each[module] for each in states), strict=True))
        return y


def _apply(layers: Iterable[nn.Module], x: Tensor, state: StreamingState) -> Tensor:
    for layer in layers:
        x = layer(x, state)
    return x


def encoder(config: CodecConfig) -> SeanetStack:
    """Waveform [B, N, 1] -> [B, N / hop, hidden]."""
    widths = [config.filters * 2**i for i in range(len(config.ratios) + 1)]
    layers: list[nn.Module] = [CausalConv((1, widths[0]), config.kernel)]
    for ratio, (narrow, wide) in zip(reversed(config.ratios), pairwise(widths), strict=True):
        layers += [*_residuals(narrow, config), Elu(), CausalConv((narrow, wide), 2 * ratio, stride=ratio)]
    return SeanetStack([*layers, Elu(), CausalConv((widths[-1], config.transformer.hidden), config.last_kernel)])


def decoder(config: CodecConfig) -> SeanetStack:
    """The encoder's mirror: [B, N, hidden] -> waveform [B, N * hop, 1]."""
    widths = [config.filters * 2**i for i in reversed(range(len(config.ratios) + 1))]
    layers: list[nn.Module] = [CausalConv((config.transformer.hidden, widths[0]), config.kernel)]
    for ratio, (wide, narrow) in zip(config.ratios, pairwise(widths), strict=True):
        layers += [Elu(), CausalConvTranspose((wide, narrow), ratio), *_residuals(narrow, config)]
    # The largest group of positions that divides a hop and whose overlap ends within the next group.
    hop = math.prod(config.ratios)
    groups = [size for size in range(max(1, config.last_kernel - 1), _MAX_GROUP + 1) if hop % size == 0]
    last: nn.Module = CausalConv((widths[-1], 1), config.last_kernel)
    if groups:
        last = MonoConv(widths[-1], config.last_kernel, groups[-1])
    return SeanetStack([*layers, Elu(), last])


def _residuals(channels: int, config: CodecConfig) -> list[nn.Module]:
    return [Residual(channels, config.dilation_growth**j, config) for j in range(config.residual_layers)]
