"""Mimi's causal convolutions, each carrying from chunk to chunk what the next chunk needs.

A layer is a function of a chunk [B, N, C] and a `Memory`. Its weights never change; what it carries lies in the memory
under the layer itself, row by row, so a run is one memory, dropped when the run is over, and runs can be joined. A run
that begins has an empty memory; beside others that go on, one of zeros.

Convolutions are matrix products over windows of their input. Channels come last, so that an up-sampling's output lies
where it belongs: on a CPU the bundled codec decodes in half the time PyTorch's own convolutions take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from csm_cli.codec.config import CodecConfig

Memory = dict[nn.Module, tuple[Tensor, ...]]


_HEAD = 64  # inputs copied behind what is carried, where the others need not be

Layout = list[tuple[nn.Module, list[torch.Size]]]


def pack(memory: Memory) -> tuple[Tensor, Layout]:
    """A memory of B rows as one tensor [B, M], and which layer's parts stand in a row, in which shapes.

    Rows of any runs are then joined by one copy, where hundreds of small ones would take longer than the decoding.
    """
    layout = [(layer, [part.shape[1:] for part in parts]) for layer, parts in memory.items()]
    return torch.cat([part.flatten(1) for parts in memory.values() for part in parts], dim=1), layout


def unpack(rows: Tensor, layout: Layout) -> Memory:
    """The memory whose rows [B, M] `pack` gave."""
    sizes = [shape.numel() for _, shapes in layout for shape in shapes]
    parts = iter(torch.split(rows, sizes, dim=1))
    return {layer: tuple(next(parts).view(-1, *shape) for shape in shapes) for layer, shapes in layout}


def each_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x [B, ...]; on a CPU of a row at a time, so that it is rounded as it is alone.

    How products, sums and exponentials are rounded there goes by how many numbers come together.
    """
    if len(x) == 1 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in torch.split(x, 1)])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, N, C] to [B, N, D], as `each_row` is."""
    return each_row(lambda rows: F.linear(rows, weight, bias), x)


class Conv(nn.Module):
    """Causal convolution: [B, N, C] -> [B, ceil(N / stride), D].

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
        self._offsets = range(0, kernel * dilation, dilation)
        self._narrows = stride == 1 and channels[1] < channels[0]

    @cached_property
    def _matrix(self) -> Tensor:
        """[D, kernel * C], or [kernel * D, C] where fewer channels come out than go in."""
        weight = self.conv.weight  # [D, C, kernel]
        return (weight.permute(2, 0, 1) if self._narrows else weight.transpose(1, 2)).flatten(*self._flat)

    @property
    def _flat(self) -> tuple[int, int]:
        return (0, 1) if self._narrows else (1, 2)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if missing := -x.shape[1] % self.stride:
            x = torch.cat([x, self._padding(x[:, -1:], missing)], dim=1)
        pieces = [x]
        if self.carried > 0:
            (past,) = memory.get(self) or (self._padding(x[:, :1], self.carried),)
            first, *rest = torch.split(x, [_HEAD, x.shape[1] - _HEAD], dim=1) if self._in_parts(x) else [x]
            pieces = [torch.cat([past, first], dim=1), *rest]
            memory[self] = (pieces[-1][:, -self.carried :].clone(),)  # a view would keep the whole chunk alive
        return self._mixed_first(pieces) if self._narrows else self._windows_first(*pieces)

    def _in_parts(self, x: Tensor) -> bool:
        """Whether joining two products costs less than joining what is carried and the whole input."""
        long = x.shape[1] > _HEAD + max(_HEAD, self.carried)
        return long and self._narrows and x.device.type == "cpu" and len(self._matrix) < x.shape[2]

    def _windows_first(self, x: Tensor) -> Tensor:
        taps = self._taps(x)
        windows = taps[0] if len(taps) == 1 else torch.cat(taps, dim=-1)
        return linear(windows, self._matrix, self.conv.bias)

    def _mixed_first(self, pieces: list[Tensor]) -> Tensor:
        """Products of every position with every tap, then their sums: no window of the wide input is copied."""
        products = torch.cat([linear(piece, self._matrix) for piece in pieces], dim=1)
        mixed = products.view(*products.shape[:2], len(self._offsets), -1).unbind(2)
        count = products.shape[1] - self._offsets[-1]
        shifted = [part[:, start : start + count] for part, start in zip(mixed, self._offsets, strict=True)]
        y = reduce(torch.add, shifted)
        return y if self.conv.bias is None else y + self.conv.bias

    def _taps(self, x: Tensor) -> list[Tensor]:
        """For each tap of the kernel the inputs it meets, [B, M, C]."""
        last = x.shape[1] - self._offsets[-1]
        return [x[:, start : start + last : self.stride] for start in self._offsets]

    def _padding(self, edge: Tensor, length: int) -> Tensor:
        return (edge if self.replicate else torch.zeros_like(edge)).expand(-1, length, -1)


class UpConv(nn.Module):
    """Causal transposed convolution, kernel twice the stride: [B, N, C] -> [B, N * stride, D].

    Each input's kernel reaches over the next one's output, so that every output comes of two inputs; the last input is
    carried.
    """

    def __init__(self, channels: tuple[int, int], stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(*channels, 2 * stride, stride, groups=groups, bias=bias)
        self.stride = stride

    @cached_property
    def _matrix(self) -> Tensor:
        """[stride * D, 2 * C]: from an input and the one before it to the outputs in their order."""
        conv, groups, each = self.conv, self.conv.groups, torch.arange(self.conv.groups)
        shape = groups, conv.in_channels // groups, groups, conv.out_channels // groups, 2 * self.stride
        dense = conv.weight.new_zeros(shape)
        dense[each, :, each] = conv.weight.view(shape[0], shape[1], shape[3], shape[4])
        now, then = dense.view(conv.in_channels, conv.out_channels, 2, self.stride).permute(2, 3, 1, 0)
        return torch.cat((then, now), dim=-1).flatten(0, 1)

    @cached_property
    def _bias(self) -> Tensor | None:
        return None if self.conv.bias is None else self.conv.bias.repeat(self.stride)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        (past,) = memory.get(self) or (torch.zeros_like(x[:, :1]),)
        memory[self] = (x[:, -1:].clone(),)
        pairs = torch.cat((torch.cat((past, x[:, :-1]), dim=1), x), dim=-1)  # [B, N, 2 * C]
        return linear(pairs, self._matrix, self._bias).view(len(x), -1, self.conv.out_channels)


class Elu(nn.Module):
    """[B, N, C] to the same, in place unless something else reads its input too."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self._in_place = in_place

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return F.elu(x, inplace=self._in_place)


class Residual(nn.Module):
    """Two convolutions through a bottleneck, added to their input: [B, N, C] -> [B, N, C]."""

    def __init__(self, channels: int, dilation: int, config: CodecConfig) -> None:
        super().__init__()
        narrow = channels // config.compress
        self.block = nn.ModuleList(
            [
                Elu(in_place=False),
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

    def by_rows(self, x: Tensor, memory: Memory) -> Tensor:
        """The same, one row after another: what a row takes on the way then fits a processor's cache."""
        own = set(self.modules())
        memories = [
            {layer: _row(parts, row) for layer, parts in memory.items() if layer in own} for row in range(len(x))
        ]
        y = torch.cat([self(row[None], each) for row, each in zip(x, memories, strict=True)])
        for layer in memories[0]:
            memory[layer] = tuple(torch.cat(parts) for parts in zip(*(each[layer] for each in memories), strict=True))
        return y


def _row(parts: tuple[Tensor, ...], row: int) -> tuple[Tensor, ...]:
    return tuple(part[row : row + 1] for part in parts)


def encoder(config: CodecConfig) -> Stack:
    """SEANet encoder (arXiv 2210.13438): waveform [B, N, 1] -> [B, N / hop, hidden]."""
    widths = [config.filters * 2**i for i in range(len(config.ratios) + 1)]
    layers: list[nn.Module] = [Conv((1, widths[0]), config.kernel)]
    for ratio, (narrow, wide) in zip(reversed(config.ratios), pairwise(widths), strict=True):
        layers += [*_residuals(narrow, config), Elu(), Conv((narrow, wide), 2 * ratio, stride=ratio)]
    return Stack([*layers, Elu(), Conv((widths[-1], config.transformer.hidden), config.last_kernel)])


def decoder(config: CodecConfig) -> Stack:
    """SEANet decoder, the encoder's mirror: [B, N, hidden] -> waveform [B, N * hop, 1]."""
    widths = [config.filters * 2**i for i in reversed(range(len(config.ratios) + 1))]
    layers: list[nn.Module] = [Conv((config.transformer.hidden, widths[0]), config.kernel)]
    for ratio, (wide, narrow) in zip(config.ratios, pairwise(widths), strict=True):
        layers += [Elu(), UpConv((wide, narrow), ratio), *_residuals(narrow, config)]
    return Stack([*layers, Elu(), Conv((widths[-1], 1), config.last_kernel)])


def _residuals(channels: int, config: CodecConfig) -> list[nn.Module]:
    return [Residual(channels, config.dilation_growth**j, config) for j in range(config.residual_layers)]
