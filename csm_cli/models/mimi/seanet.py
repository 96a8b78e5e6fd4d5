"""Mimi's convolutional encoder and decoder, layer by layer: each a function of a chunk [B, N, C] and a `Memory`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.convolution import CausalConv, CausalConvTranspose, MonoConv
from csm_cli.models.mimi.matmul import rowwise
from csm_cli.models.mimi.streaming_state import StreamingState

if TYPE_CHECKING:
    from csm_cli.models.mimi.config import CodecConfig

_GROUP = 12  # positions of which one channel is computed at a time
_ROW = 1 << 14  # numbers of a row from which on the next layers take it by itself
_LEAST = -30.0  # whose exponential is lost beside 1; exponentials that are next to nothing are slow to compute


class Elu(nn.Module):
    """[B, N, C] to the same: on a CPU new, else in place unless something else reads its input too."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self._in_place = in_place

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        if x.device.type != "cpu":
            return F.elu(x, inplace=self._in_place)
        return rowwise(_elu, x)


def _elu(x: Tensor) -> Tensor:
    """Four kernels, which on a CPU take half the time of PyTorch's one, or a quarter where x is far below zero."""
    below = x.clamp(_LEAST, 0).exp_().sub_(1)
    return torch.maximum(x, below, out=below)


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

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y, memory)
        return y + (x if self.shortcut is None else self.shortcut(x, memory))


class SeanetStack(nn.Module):
    """Layers one after another; their indices are part of the on-disk tensor names."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        return _through(self.layers, x, memory)

    def nearby(self, x: Tensor, memory: StreamingState) -> Tensor:
        """The same for layers that go up, of rows together only until they are long: each then fits a CPU's cache."""
        for index, layer in enumerate(self.layers):
            if x[0].numel() > _ROW:
                return self._row_by_row(self.layers[index:], x, memory)
            x = layer(x, memory)
        return x

    @staticmethod
    def _row_by_row(layers: Iterable[nn.Module], x: Tensor, memory: StreamingState) -> Tensor:
        own = {part for layer in layers for part in layer.modules()}
        memories = [
            {layer: _row(parts, row) for layer, parts in memory.items() if layer in own} for row in range(len(x))
        ]
        y = torch.cat([_through(layers, row[None], each) for row, each in zip(x, memories, strict=True)])
        for layer in memories[0]:
            memory[layer] = tuple(torch.cat(parts) for parts in zip(*(each[layer] for each in memories), strict=True))
        return y


def _through(layers: Iterable[nn.Module], x: Tensor, memory: StreamingState) -> Tensor:
    for layer in layers:
        x = layer(x, memory)
    return x


def _row(parts: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
    return tuple(part[row : row + 1] for part in parts)


def encoder(config: CodecConfig) -> SeanetStack:
    """SEANet encoder (arXiv 2210.13438): waveform [B, N, 1] -> [B, N / hop, hidden]."""
    widths = [config.filters * 2**i for i in range(len(config.ratios) + 1)]
    layers: list[nn.Module] = [CausalConv((1, widths[0]), config.kernel)]
    for ratio, (narrow, wide) in zip(reversed(config.ratios), pairwise(widths), strict=True):
        layers += [*_residuals(narrow, config), Elu(), CausalConv((narrow, wide), 2 * ratio, stride=ratio)]
    return SeanetStack([*layers, Elu(), CausalConv((widths[-1], config.transformer.hidden), config.last_kernel)])


def decoder(config: CodecConfig) -> SeanetStack:
    """SEANet decoder, the encoder's mirror: [B, N, hidden] -> waveform [B, N * hop, 1]."""
    widths = [config.filters * 2**i for i in reversed(range(len(config.ratios) + 1))]
    layers: list[nn.Module] = [CausalConv((config.transformer.hidden, widths[0]), config.kernel)]
    for ratio, (wide, narrow) in zip(config.ratios, pairwise(widths), strict=True):
        layers += [Elu(), CausalConvTranspose((wide, narrow), ratio), *_residuals(narrow, config)]
    return SeanetStack([*layers, Elu(), _last(widths[-1], config)])


def _last(channels: int, config: CodecConfig) -> nn.Module:
    """As many positions as can be go together; what they add may reach no further than the next of them."""
    hop = math.prod(config.ratios)
    groups = [size for size in range(max(1, config.last_kernel - 1), _GROUP + 1) if hop % size == 0]
    if not groups:
        return CausalConv((channels, 1), config.last_kernel)
    return MonoConv(channels, config.last_kernel, groups[-1])


def _residuals(channels: int, config: CodecConfig) -> list[nn.Module]:
    return [Residual(channels, config.dilation_growth**j, config) for j in range(config.residual_layers)]
