"""Linear layers, plain and in 8 bits, and the RMS norm: what the kernels are given.

On CUDA, where decoding is bound by reading weights, only weights are quantized. On a CPU weights are quantized per
output and activations per row, so that rows do not depend on each other (PyTorch's `quantized::linear_dynamic` uses one
scale for all rows); sums are exact, in int32. This pays for wide layers such as csm-1b's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.csm.config import StackConfig
from csm_cli.models.csm.few_rows import FewRows

_PADDING = 16
_MIN_PEAK = 1e-12  # for rows that are all zero


class LinearWeight:
    """A bias-free linear layer. weight: [out, in]; int8 if there is a `scale` [out], one per output."""

    weight: Tensor
    scale: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        raise NotImplementedError

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [N, out] plus the output."""
        return residual + self(x)


class Linear(LinearWeight):
    """matrix: the transpose of `weight`, [in, out].

    On a CPU in float32 each input's weights in `matrix` are padded, so that they do not compete for the same cache
    sets, and a row's output does not depend on how many rows there are. Elsewhere it is a view.
    """

    def __init__(self, weight: Tensor) -> None:
        self.matrix = weight.contiguous().T
        self._min_rows = 0
        if is_cpu_float32(weight):
            padded = weight.new_zeros(weight.shape[1], weight.shape[0] + _PADDING)
            self.matrix = padded[:, : len(weight)].copy_(weight.T)
            self._few_rows = FewRows(padded, len(weight))
            self._min_rows = self._few_rows.min_rows
        self.weight = self.matrix.T

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) >= self._min_rows or torch.compiler.is_compiling():
            return torch.mm(x, self.matrix)
        return self._few_rows.multiply(x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if len(x) >= self._min_rows or torch.compiler.is_compiling():
            return torch.addmm(residual, x, self.matrix)
        return self._few_rows.multiply(x, residual)


class Int8Linear(LinearWeight):
    """Weights and activations in 8 bits (W8A8). weight: contiguous per output."""

    def __init__(self, weight: Tensor) -> None:
        scale = _row_scale(weight.float())
        # The other memory layout makes a product on a CPU take twice as long.
        self.weight = (weight / scale).round_().to(torch.int8, memory_format=torch.contiguous_format)
        self.scale: Tensor = scale[:, 0]

    def __call__(self, x: Tensor) -> Tensor:
        scale = _row_scale(x)
        sums = torch._int_mm((x / scale).round_().to(torch.int8), self.weight.T)
        return sums.float().mul_(self.scale).mul_(scale)


class Int8Weight(Int8Linear):
    """Weights in 8 bits, activations as they are."""

    def __call__(self, x: Tensor) -> Tensor:
        return (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)


def _row_scale(x: Tensor) -> Tensor:
    """[N, 1], by which each row fills -127 to 127. `abs().amax()` is eight times as fast as the norm on a CPU."""
    return x.abs().amax(-1, keepdim=True).clamp_(min=_MIN_PEAK).div_(127)


class RMSNorm:
    """RMS norm without a weight, over [N, hidden]; the projection after it must be multiplied by `gain`.

    PyTorch's is one kernel on CUDA and eight on a CPU, where x over its length, kept from zero by `eps`, takes three.
    Half precision uses PyTorch's, which computes in float32.
    """

    def __init__(self, config: StackConfig, like: Tensor) -> None:
        self._shape, self.eps = (config.hidden,), config.eps
        self._by_length = is_cpu_float32(like)
        self._min_square = config.hidden * config.eps
        self._min_length = like.new_full((1, 1), math.sqrt(self._min_square))
        self.gain = math.sqrt(config.hidden) if self._by_length else 1.0

    def __call__(self, x: Tensor) -> Tensor:
        if not self._by_length:
            return F.rms_norm(x, self._shape, None, self.eps)
        if torch.compiler.is_compiling():
            return x * (x.square().sum(-1, keepdim=True) + self._min_square).rsqrt()
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / length.hypot_(self._min_length)


def is_cpu_float32(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32
