"""8-bit linears for a CPU: the layers of both stacks; tables, norms and heads stay as they are.

Weights are rounded per output, activations per row, so that rows do not depend on their neighbours (PyTorch's own
`quantized::linear_dynamic` rounds all rows by one step); sums are exact, in int32. It pays where weights are large: on
csm-1b's layers a product takes a fifth to two fifths of float32's time, on the bundled voice's (192 to 512 wide) as
long or longer. Tried and left: weight-only `_weight_int8pack_mm`, slower than float32 from 16 rows on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from csm_cli.errors import UsageError
from csm_cli.model.csm import CsmModel

_LEAST = 1e-12  # for rows that are all zero


class Int8Linear:
    """A bias-free linear around a weight [out, in] rounded to 8 bits."""

    def __init__(self, weight: Tensor) -> None:
        step = _step(weight)
        self._weight = (weight / step).round_().to(torch.int8).T  # [in, out]
        self._step = step.T

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out]"""
        step = _step(x)
        sums = torch._int_mm((x / step).round_().to(torch.int8), self._weight)
        return step * self._step * sums

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same, added to [N, out]."""
        return residual + self(x)


def quantize(model: CsmModel) -> None:
    """Rounds the layers of both stacks to 8 bits, in place.

    Raises:
        UsageError: the model is not on a CPU in float32.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError("int8 is for a CPU in float32; add --device cpu --dtype float32, or leave --quantize out")
    for layer in (*model.backbone.layers, *model.depth.layers):
        for name in ("qkv", "out", "gate_up", "down"):
            setattr(layer, name, Int8Linear(getattr(layer, name).weight.T))


def _step(rows: Tensor) -> Tensor:
    """[N, 1], by which each row fills -127 to 127."""
    largest: Tensor = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True)
    return largest.clamp_(min=_LEAST).div_(127)
