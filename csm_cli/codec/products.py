"""What a row of several is multiplied by and mapped to: on a CPU to the last bit as it is alone.

How a number is rounded there goes by what is computed with it: functions of vectors end in functions of numbers, and a
product of one position or of long rows is shared out among threads in other ways alone than in a batch. So functions
are applied row by row, and products are sums of shorter ones. Those are the same to the last bit in a batch, alone and
on any number of threads (MKL, 1 to 16 threads, 2 to 50 positions).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_LONGEST = 512  # of the rows multiplied; from 1,024 on they are cut where there are threads to spare


def laid_out(matrix: Tensor) -> Tensor:
    """The same [D, C] to multiply by; on a CPU its columns lie together, which takes 0.6 of the time."""
    return matrix.T.contiguous().T if matrix.device.type == "cpu" else matrix


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, N, C] times [D, C] to [B, N, D]."""
    if x.device.type != "cpu":
        return F.linear(x, matrix, bias)
    y = _product(x, matrix) if x.shape[2] <= _LONGEST else _sum_of_products(x, matrix)
    return y if bias is None else y.add_(bias)


def _sum_of_products(x: Tensor, matrix: Tensor) -> Tensor:
    first, *rest = zip(torch.split(x, _LONGEST, dim=2), torch.split(matrix, _LONGEST, dim=1), strict=True)
    y = _product(*first)
    for part, factor in rest:
        y = _add_product(y, part, factor)
    return y


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    if _batched(x):
        return torch.bmm(x, matrix.T.expand(len(x), -1, -1))
    return each_row(lambda row: F.linear(row, matrix), x)


def _add_product(y: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    if _batched(x):
        return y.baddbmm_(x, matrix.T.expand(len(x), -1, -1))
    for row, own in zip(y, x, strict=True):
        row.addmm_(own, matrix.T)
    return y


def _batched(x: Tensor) -> bool:
    """One call for all rows takes a third of the time of one for each; but one position alone is computed otherwise."""
    return len(x) > 1 and x.shape[1] > 1


def each_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x [B, ...]; on a CPU of a row at a time."""
    if len(x) == 1 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in torch.split(x, 1)])
