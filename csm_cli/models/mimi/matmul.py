"""Products and functions of several rows, each of which is on a CPU to the last bit what it is alone.

How a number is rounded there goes by what is computed with it: functions of vectors end in functions of numbers, and a
product of one position, of long rows or of odd sizes is shared out among threads in other ways alone than in a batch.
So functions are applied row by row, and products are sums of shorter ones, of all rows together where their sizes are
those below and else row by row. Products of these sizes are also the same on any number of threads (MKL, 1 to 16
threads, 2 to 50 positions).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_LONGEST = 512  # of the rows multiplied; from 1,024 on they are cut where there are threads to spare
_EVEN = (128, 256, 512)  # lengths of rows that MKL never cuts, multiplied by as many as these at least:
_WIDE = 256


def pack_weight(matrix: Tensor) -> Tensor:
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
    if _batched(x, matrix):
        return torch.bmm(x, matrix.T.expand(len(x), -1, -1))
    if len(x) == 1:
        return F.linear(x, matrix)
    y = x.new_empty(*x.shape[:2], len(matrix))
    for row, own in zip(y, x, strict=True):
        torch.mm(own, matrix.T, out=row)  # joined, long rows would be copied once more
    return y


def _add_product(y: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    if _batched(x, matrix):
        return y.baddbmm_(x, matrix.T.expand(len(x), -1, -1))
    for row, own in zip(y, x, strict=True):
        row.addmm_(own, matrix.T)
    return y


def _batched(x: Tensor, matrix: Tensor) -> bool:
    """Whether one call for all rows, a third of the time of one for each, is rounded as each of them alone is."""
    return len(x) > 1 and x.shape[1] > 1 and x.shape[2] in _EVEN and len(matrix) >= _WIDE


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x [B, ...]; on a CPU of a row at a time."""
    if len(x) == 1 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in torch.split(x, 1)])
