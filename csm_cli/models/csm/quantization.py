"""8-bit linear layers of both stacks; tables, norms and heads are not quantized.

On CUDA, where decoding is bound by reading weights, only weights are quantized. On a CPU weights are quantized per
output and activations per row, so that rows do not depend on each other (PyTorch's `quantized::linear_dynamic` uses one
scale for all rows); sums are exact, in int32. This pays for wide layers such as csm-1b's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.errors import UsageError
from csm_cli.models.csm.kernels import has_triton
from csm_cli.models.csm.model import CsmModel

_MIN_PEAK = 1e-12  # for rows that are all zero


class _Int8:
    """A linear layer with int8 weights. weight: [out, in] int8, contiguous per output; scale: [out]."""

    def __init__(self, weight: Tensor) -> None:
        scale = _row_scale(weight.float())
        # The other memory layout makes a product on a CPU take twice as long.
        self.weight = (weight / scale).round_().to(torch.int8, memory_format=torch.contiguous_format)
        self.scale = scale[:, 0]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        raise NotImplementedError

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [N, out] plus the output."""
        return residual + self(x)


class Int8Linear(_Int8):
    """Activations in 8 bits too (W8A8)."""

    def __call__(self, x: Tensor) -> Tensor:
        scale = _row_scale(x)
        sums = torch._int_mm((x / scale).round_().to(torch.int8), self.weight.T)
        return sums.float().mul_(self.scale).mul_(scale)


class Int8Weight(_Int8):
    """Activations as they are."""

    def __call__(self, x: Tensor) -> Tensor:
        return (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)


def quantize(model: CsmModel) -> None:
    """Quantizes the layers of both stacks to 8 bits, in place.

    Raises:
        UsageError: the model is neither on CUDA with Triton nor on a CPU in float32.
    """
    if model.device.type == "cuda":
        if not has_triton():
            raise UsageError("int8 on CUDA needs triton and a C compiler; install both or omit --quantize")
    elif model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError("int8 needs CUDA, or a CPU in float32; add --device cpu --dtype float32 or omit --quantize")
    linear = Int8Weight if model.device.type == "cuda" else Int8Linear
    for layer in (*model.backbone.layers, *model.depth.layers):
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(layer, name, linear(getattr(layer, name).weight))


def _row_scale(x: Tensor) -> Tensor:
    """[N, 1], by which each row fills -127 to 127. `abs().amax()` is eight times as fast as the norm on a CPU."""
    return x.abs().amax(-1, keepdim=True).clamp_(min=_MIN_PEAK).div_(127)
