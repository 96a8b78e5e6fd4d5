"""Mimi's causal convolutions: functions of a chunk [B, N, C] and a `Memory`.

They are matrix products over windows of their input. Channels come last, so that an up-sampling's output lies where it
belongs: on a CPU the bundled codec decodes in half the time PyTorch's own convolutions take.
"""

from __future__ import annotations

from functools import cached_property, reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.matmul import linear, pack_weight
from csm_cli.models.mimi.streaming_state import StreamingState


class CausalConv(nn.Module):
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
        return pack_weight((weight.permute(2, 0, 1) if self._narrows else weight.transpose(1, 2)).flatten(*self._flat))

    @property
    def _flat(self) -> tuple[int, int]:
        return (0, 1) if self._narrows else (1, 2)

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        if missing := -x.shape[1] % self.stride:
            x = torch.cat([x, self._padding(x[:, -1:], missing)], dim=1)
        if self.carried > 0:
            (past,) = memory.get(self) or (self._padding(x[:, :1], self.carried),)
            x = torch.cat([past, x], dim=1)
            memory[self] = (x[:, -self.carried :].clone(),)  # a view would keep the whole chunk alive
        if self._narrows:
            return self._mixed_first(x)
        taps = self._taps(x)
        return linear(taps[0] if len(taps) == 1 else torch.cat(taps, dim=-1), self._matrix, self.conv.bias)

    def _mixed_first(self, x: Tensor) -> Tensor:
        """Products of every position with every tap, then their sums: no window of the wide input is copied."""
        products = linear(x, self._matrix)
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


class MonoConv(nn.Module):
    """Causal convolution to one channel: [B, N, C] -> [B, N, 1], N a multiple of the `group`.

    What a group of positions adds to its own outputs and to the next group's is one product, several times faster than
    a narrow one for each tap. Carried is what is added to the next chunk's outputs.
    """

    def __init__(self, channels: int, kernel: int, group: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 1, kernel)
        self.carried = kernel - 1
        self.group = group

    @cached_property
    def _matrix(self) -> Tensor:
        """[group + carried, group * C]"""
        (weight,) = self.conv.weight  # [C, kernel]
        reach = weight.new_zeros(self.group + self.carried, self.group, len(weight))
        for position in range(self.group):
            reach[position : position + self.carried + 1, position] = weight.T.flip(0)
        return pack_weight(reach.flatten(1))

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        products = linear(x.view(len(x), -1, self.group * x.shape[2]), self._matrix)
        own, next_ones = torch.split(products, [self.group, self.carried], dim=2)
        y = F.pad(own, (0, 0, 0, 1))  # [B, N / group + 1, group]
        y[:, 1:, : self.carried].add_(next_ones)
        (before,) = memory.get(self) or (x.new_zeros(len(x), self.carried),)
        y[:, 0, : self.carried].add_(before)
        memory[self] = (y[:, -1, : self.carried].clone(),)
        y = y[:, :-1].reshape(len(x), -1, 1)
        return y if self.conv.bias is None else y + self.conv.bias


class CausalConvTranspose(nn.Module):
    """Causal transposed convolution, kernel twice the stride: [B, N, C] -> [B, N * stride, D].

    Each input's kernel reaches over the next one's output, so that every output comes of two inputs; the last input is
    carried.
    """

    def __init__(self, channels: tuple[int, int], stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(*channels, 2 * stride, stride, groups=groups, bias=bias)
        self.stride = stride

    @cached_property
    def _taps(self) -> tuple[Tensor, Tensor]:
        """[stride, C]: of the input before and of this one, where each channel goes by itself."""
        now, then = self.conv.weight.view(-1, 2, self.stride).permute(1, 2, 0).contiguous()
        return then, now

    @cached_property
    def _matrix(self) -> Tensor:
        """[stride * D, 2 * C]: from an input and the one before it to the outputs in their order."""
        conv, groups, each = self.conv, self.conv.groups, torch.arange(self.conv.groups)
        shape = groups, conv.in_channels // groups, groups, conv.out_channels // groups, 2 * self.stride
        dense = conv.weight.new_zeros(shape)
        dense[each, :, each] = conv.weight.view(shape[0], shape[1], shape[3], shape[4])
        now, then = dense.view(conv.in_channels, conv.out_channels, 2, self.stride).permute(2, 3, 1, 0)
        return pack_weight(torch.cat((then, now), dim=-1).flatten(0, 1))

    @cached_property
    def _bias(self) -> Tensor | None:
        return None if self.conv.bias is None else self.conv.bias.repeat(self.stride)

    def forward(self, x: Tensor, memory: StreamingState) -> Tensor:
        (past,) = memory.get(self) or (torch.zeros_like(x[:, :1]),)
        memory[self] = (x[:, -1:].clone(),)
        before = torch.cat((past, x[:, :-1]), dim=1)
        y = self._apart(before, x) if self._each_apart else self._mixed(torch.cat((before, x), dim=-1))
        return y.view(len(x), -1, self.conv.out_channels)

    @property
    def _each_apart(self) -> bool:
        return self.conv.groups == self.conv.in_channels == self.conv.out_channels and self.conv.bias is None

    def _apart(self, before: Tensor, x: Tensor) -> Tensor:
        then, now = self._taps
        return (before[:, :, None] * then).add_(x[:, :, None] * now)  # [B, N, stride, C]

    def _mixed(self, pairs: Tensor) -> Tensor:
        return linear(pairs, self._matrix, self._bias)
