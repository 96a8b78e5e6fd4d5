"""Mimi's causal convolutions, each carrying from chunk to chunk what the next chunk needs.

A layer is a function of a chunk and a `Memory`. Its weights never change; what it carries lies in the memory under
the layer itself, so a run is one memory, dropped when the run is over.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from csm_cli.codec.config import CodecConfig

Memory = dict[nn.Module, tuple[Tensor, ...]]


class Conv(nn.Module):
    """Causal convolution: [B, C, N] -> [B, D, ceil(N / stride)].

    Only a run's last chunk may be no multiple of the stride; it is padded up to one. `replicate` pads both ends of
    the run with its outermost value instead of zeros.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(*channels, kernel, stride, dilation=dilation, bias=bias)
        self.carried = (kernel - 1) * dilation + 1 - stride
        self.stride = stride
        self.replicate = replicate

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if missing := -x.shape[-1] % self.stride:
            x = torch.cat([x, self._padding(x[..., -1:], missing)], dim=-1)
        if self.carried > 0:
            (past,) = memory.get(self) or (self._padding(x[..., :1], self.carried),)
            x = torch.cat([past, x], dim=-1)
            memory[self] = (x[..., -self.carried :].clone(),)  # a view would keep the whole chunk alive
        y: Tensor = self.conv(x)
        return y

    def _padding(self, edge: Tensor, length: int) -> Tensor:
        return (edge if self.replicate else torch.zeros_like(edge)).expand(-1, -1, length)


class UpConv(nn.Module):
    """Causal transposed convolution, kernel twice the stride: [B, C, N] -> [B, D, N * stride].

    The second half of the last input's kernel reaches into the next chunk; it is carried and added there.
    """

    def __init__(self, channels: tuple[int, int], stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(*channels, 2 * stride, stride, groups=groups, bias=bias)
        self.stride = stride

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        conv = self.conv
        y = F.conv_transpose1d(x, conv.weight, stride=self.stride, groups=conv.groups)
        if self in memory:
            y[..., : self.stride] += memory[self][0]
        memory[self] = (y[..., -self.stride :].clone(),)
        y = y[..., : -self.stride]
        return y if conv.bias is None else y + conv.bias[:, None]


class Elu(nn.Module):
    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return F.elu(x)


class Residual(nn.Module):
    """Two convolutions through a bottleneck, added to their input: [B, C, N] -> [B, C, N]."""

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        narrow = channels // config.compress
        self.block = nn.ModuleList(
            [
                Elu(),
                Conv((channels, narrow), config.residual_kernel, dilation=dilation),
                Elu(),
                Conv((narrow, channels), 1),
            ]
        )
        self.shortcut = Conv((channels, channels), 1) if config.conv_shortcut else None

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y, memory)
        return y + (x if self.shortcut is None else self.shortcut(x, memory))


class Stack(nn.Module):
    """Layers one after another; their indices are part of the on-disk tensor names."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        for layer in self.layers:
            x = layer(x, memory)
        return x


def encoder(config: CodecConfig) -> Stack:
    """SEANet encoder (arXiv 2210.13438): waveform [B, 1, N] -> [B, hidden, N / hop]."""
    widths = [config.filters * 2**i for i in range(len(config.ratios) + 1)]
    layers: list[nn.Module] = [Conv((1, widths[0]), config.kernel)]
    for ratio, (narrow, wide) in zip(reversed(config.ratios), pairwise(widths), strict=True):
        layers += [*_residuals(narrow, config), Elu(), Conv((narrow, wide), 2 * ratio, stride=ratio)]
    return Stack([*layers, Elu(), Conv((widths[-1], config.transformer.hidden), config.last_kernel)])


def decoder(config: CodecConfig) -> Stack:
    """SEANet decoder, the encoder's mirror: [B, hidden, N] -> waveform [B, 1, N * hop]."""
    widths = [config.filters * 2**i for i in reversed(range(len(config.ratios) + 1))]
    layers: list[nn.Module] = [Conv((config.transformer.hidden, widths[0]), config.kernel)]
    for ratio, (wide, narrow) in zip(config.ratios, pairwise(widths), strict=True):
        layers += [Elu(), UpConv((wide, narrow), ratio), *_residuals(narrow, config)]
    return Stack([*layers, Elu(), Conv((widths[-1], 1), config.last_kernel)])


def _residuals(channels: int, config: CodecConfig) -> list[nn.Module]:
    return [Residual(channels, config.dilation_growth**j, config) for j in range(config.residual_layers)]
