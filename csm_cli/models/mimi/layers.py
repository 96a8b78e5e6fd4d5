"""Mimi's linear layers, activations and causal convolutions, over chunks [B, N, C] and a streaming state.

On a CPU each row of a batch is bit-identical to a batch of that row only. Rounding there depends on what is computed
together: vectorized functions treat the tail of a vector differently, and MKL distributes products of one position, of
long lines or of odd sizes over threads by the size of the batch. So functions are applied row by row. Products are sums
of shorter ones, batched only for sizes at which MKL's result does not depend on the batch or the threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.streaming import StreamingState

_MAX_INPUTS = 512  # of one product; MKL splits products of 1,024 inputs and more over spare threads
_BATCHED_INPUTS, _MIN_BATCHED_OUTPUTS = (128, 256, 512), 256  # sizes that MKL never splits
_MIN_EXPONENT = -30.0  # its exponential vanishes beside 1; smaller ones are denormal, and slow


def pack_weight(matrix: Tensor) -> Tensor:
    """The same [D, C], on a CPU stored by columns, which multiplies faster."""
    return matrix.T.contiguous().T if matrix.device.type == "cpu" else matrix


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, N, C] times [D, C] to [B, N, D]."""
    if x.device.type != "cpu":
        return F.linear(x, matrix, bias)
    if x.shape[2] <= _MAX_INPUTS:
        y = _product(x, matrix)
    else:
        parts = zip(torch.split(x, _MAX_INPUTS, dim=2), torch.split(matrix, _MAX_INPUTS, dim=1), strict=True)
        y = _product(*next(parts))
        for part, weight in parts:
            if _batchable(part, weight):
                y.baddbmm_(part, weight.T.expand(len(part), -1, -1))
            else:
                for row, part_row in zip(y, part, strict=True):
                    row.addmm_(part_row, weight.T)
    return y if bias is None else y.add_(bias)


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    if _batchable(x, matrix):
        return torch.bmm(x, matrix.T.expand(len(x), -1, -1))
    if len(x) == 1:
        return F.linear(x, matrix)
    y = x.new_empty(*x.shape[:2], len(matrix))
    for row, x_row in zip(y, x, strict=True):
        torch.mm(x_row, matrix.T, out=row)  # concatenating would copy every row once more
    return y


def _batchable(x: Tensor, matrix: Tensor) -> bool:
    """Whether one call for all rows, which takes a third of the time, rounds as a call for each row does."""
    return len(x) > 1 and x.shape[1] > 1 and x.shape[2] in _BATCHED_INPUTS and len(matrix) >= _MIN_BATCHED_OUTPUTS


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x [B, ...]; on a CPU one row at a time."""
    if len(x) == 1 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in torch.split(x, 1)])


class Elu(nn.Module):
    """[B, N, C] to the same: on a CPU a new tensor, else in place unless something else reads the input too."""

    def __init__(self, in_place: bool = True) -> None:
        super().__init__()
        self._in_place = in_place

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        if x.device.type != "cpu":
            return F.elu(x, inplace=self._in_place)
        return rowwise(_elu, x)


def _elu(x: Tensor) -> Tensor:
    """Four kernels, which on a CPU take half the time of PyTorch's one, or a quarter for x far below zero."""
    negative = x.clamp(_MIN_EXPONENT, 0).exp_().sub_(1)
    return torch.maximum(x, negative, out=negative)


class CausalConv(nn.Module):
    """Causal convolution: [B, N, C] -> [B, ceil(N / stride), D], as a matrix product over windows of the input.

    Channels come last, so that an up-sampling's output needs no transposition. Only the last chunk of an utterance may
    not be a multiple of the stride; it is padded to one. `replicate` pads both ends of the utterance with the outermost
    value instead of zeros.
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
        self.stride = stride
        self.replicate = replicate
        self._carried = (kernel - 1) * dilation + 1 - stride
        self._offsets = range(0, kernel * dilation, dilation)
        self._narrows = stride == 1 and channels[1] < channels[0]

    @cached_property
    def _matrix(self) -> Tensor:
        """[D, kernel * C], or [kernel * D, C] if fewer channels come out than go in."""
        weight = self.conv.weight  # [D, C, kernel]
        return pack_weight(
            weight.permute(2, 0, 1).flatten(0, 1) if self._narrows else weight.transpose(1, 2).flatten(1)
        )

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        if missing := -x.shape[1] % self.stride:
            x = torch.cat([x, self._padding(x[:, -1:], missing)], dim=1)
        if self._carried > 0:
            (past,) = state.get(self) or (self._padding(x[:, :1], self._carried),)
            x = torch.cat([past, x], dim=1)
            state[self] = (x[:, -self._carried :].clone(),)  # a view would keep the whole chunk alive
        length = x.shape[1] - self._offsets[-1]
        if self._narrows:  # products of every position with every tap, then their sums: no wide window is copied
            products = linear(x, self._matrix)
            per_tap = products.view(*products.shape[:2], len(self._offsets), -1).unbind(2)
            y = reduce(torch.add, [tap[:, n : n + length] for tap, n in zip(per_tap, self._offsets, strict=True)])
            return y if self.conv.bias is None else y + self.conv.bias
        taps = [x[:, start : start + length : self.stride] for start in self._offsets]  # each [B, M, C]
        return linear(taps[0] if len(taps) == 1 else torch.cat(taps, dim=-1), self._matrix, self.conv.bias)

    def _padding(self, edge: Tensor, length: int) -> Tensor:
        return (edge if self.replicate else torch.zeros_like(edge)).expand(-1, length, -1)


class MonoConv(nn.Module):
    """Causal convolution to one channel: [B, N, C] -> [B, N, 1], N a multiple of `group`.

    What a group of positions adds to its own outputs and to the next group's is one product, several times faster than
    a narrow one for each tap. The state is what is added to the next chunk's outputs.
    """

    def __init__(self, channels: int, kernel: int, group: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 1, kernel)
        self.group = group
        self._carried = kernel - 1

    @cached_property
    def _matrix(self) -> Tensor:
        """[group + carried, group * C]"""
        (weight,) = self.conv.weight  # [C, kernel]
        matrix = weight.new_zeros(self.group + self._carried, self.group, len(weight))
        for position in range(self.group):
            matrix[position : position + self._carried + 1, position] = weight.T.flip(0)
        return pack_weight(matrix.flatten(1))

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        products = linear(x.view(len(x), -1, self.group * x.shape[2]), self._matrix)
        own, overlap = torch.split(products, [self.group, self._carried], dim=2)
        y = F.pad(own, (0, 0, 0, 1))  # [B, N / group + 1, group]
        y[:, 1:, : self._carried].add_(overlap)
        (past,) = state.get(self) or (x.new_zeros(len(x), self._carried),)
        y[:, 0, : self._carried].add_(past)
        state[self] = (y[:, -1, : self._carried].clone(),)
        y = y[:, :-1].reshape(len(x), -1, 1)
        return y if self.conv.bias is None else y + self.conv.bias


class CausalConvTranspose(nn.Module):
    """Causal transposed convolution, kernel twice the stride: [B, N, C] -> [B, N * stride, D].

    Each output depends on two inputs; the state is the last input.
    """

    def __init__(self, channels: tuple[int, int], stride: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(*channels, 2 * stride, stride, groups=groups, bias=bias)
        self.stride = stride
        self._depthwise = groups == channels[0] == channels[1] and not bias

    @cached_property
    def _taps(self) -> tuple[Tensor, Tensor]:
        """Depthwise weights [stride, C] of the previous and of the current input."""
        current, previous = self.conv.weight.view(-1, 2, self.stride).permute(1, 2, 0).contiguous()
        return previous, current

    @cached_property
    def _matrix(self) -> Tensor:
        """[stride * D, 2 * C]: from the previous and the current input to the outputs in their order."""
        conv, groups, each = self.conv, self.conv.groups, torch.arange(self.conv.groups)
        shape = groups, conv.in_channels // groups, groups, conv.out_channels // groups, 2 * self.stride
        dense = conv.weight.new_zeros(shape)
        dense[each, :, each] = conv.weight.view(shape[0], shape[1], shape[3], shape[4])
        current, previous = dense.view(conv.in_channels, conv.out_channels, 2, self.stride).permute(2, 3, 1, 0)
        return pack_weight(torch.cat((previous, current), dim=-1).flatten(0, 1))

    @cached_property
    def _bias(self) -> Tensor | None:
        return None if self.conv.bias is None else self.conv.bias.repeat(self.stride)

    def forward(self, x: Tensor, state: StreamingState) -> Tensor:
        (past,) = state.get(self) or (torch.zeros_like(x[:, :1]),)
        state[self] = (x[:, -1:].clone(),)
        previous = torch.cat((past, x[:, :-1]), dim=1)
        if self._depthwise:
            previous_tap, current_tap = self._taps
            y = (previous[:, :, None] * previous_tap).add_(x[:, :, None] * current_tap)  # [B, N, stride, C]
        else:
            y = linear(torch.cat((previous, x), dim=-1), self._matrix, self._bias)
        return y.view(len(x), -1, self.conv.out_channels)
