"""8-bit linears: the layers of both stacks; tables, norms and heads stay as they are.

On CUDA, where reading weights takes the time, only they are rounded. On a CPU weights are rounded per output and
activations per row, so that rows do not depend on their neighbours (PyTorch's own `quantized::linear_dynamic` rounds
all rows by one step); sums are exact, in int32. That pays where weights are large: on csm-1b's layers a product takes a
fifth to two fifths of float32's time, on the bundled voice's (192 to 512 wide) as long or longer. Tried and left:
weight-only `_weight_int8pack_mm` on a CPU, slower than float32 from 16 rows on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.errors import UsageError
from csm_cli.models.csm.kernels import has_triton
from csm_cli.models.csm.kernels.reference import LinearWeight
from csm_cli.models.csm.model import CsmModel

_LEAST = 1e-12  # for rows that are all zero


class Int8Linear:
    """A bias-free linear around a weight [out, in] rounded to 8 bits."""

    def __init__(self, weight: Tensor) -> None:
        step = _step(weight)
        self.lines, self.step = _rounded(weight, step), step[:, 0]  # [out, in], [out]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        step = _step(x)
        sums = torch._int_mm((x / step).round_().to(torch.int8), self.lines.T)
        return sums.float().mul_(self.step).mul_(step)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to [N, out]."""
        return residual + self(x)


class Int8Weight:
    """The same with activations as they are; rows do not depend on their neighbours."""

    def __init__(self, weight: Tensor) -> None:
        step = _step(weight.float())
        self.lines = _rounded(weight, step)  # [out, in]
        self.step = step[:, 0]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        return (F.linear(x, self.lines.to(x.dtype)) * self.step).to(x.dtype)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to [N, out]."""
        return residual + self(x)


def quantize(model: CsmModel) -> None:
    """Rounds the layers of both stacks to 8 bits, in place.

    Raises:
        UsageError: the model is neither on CUDA with Triton nor on a CPU in float32.
    """
    rounded = _rounding(model)
    for layer in (*model.backbone.layers, *model.depth.layers):
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(layer, name, rounded(getattr(layer, name).weight.T))


def _rounding(model: CsmModel) -> Callable[[Tensor], LinearWeight]:
    if model.device.type == "cuda":
        if not has_triton():
            raise UsageError("int8 on CUDA needs triton and a C compiler; install both or leave --quantize out")
        return Int8Weight
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError(
            "int8 is for CUDA, or a CPU in float32; add --device cpu --dtype float32 or leave --quantize out"
        )
    return Int8Linear


def _rounded(weight: Tensor, step: Tensor) -> Tensor:
    """[out, in] of 8 bits, each output's lying together: the other way a product on a CPU takes twice as long."""
    return (weight / step).round_().to(torch.int8, memory_format=torch.contiguous_format)


def _step(rows: Tensor) -> Tensor:
    """[N, 1], by which each row fills -127 to 127. The infinity norm takes eight times as long on a CPU."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=_LEAST).div_(127)
