"""Products of a few rows that are rounded like those of many rows, on a CPU in float32.

MKL multiplies up to three rows one after the other, and adds the terms in another order than for more rows (on an
AMD EPYC), so a row alone would differ from the same row in a batch. From which number of rows on products are rounded
alike, and how, is tried out once for each size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_COUNTS = (1, 2, 3, 4, 5, 8, 16)  # rows of the products that are compared
_MAX_BLOCK, _BLOCK_STEP = 512, 16  # inputs whose terms may be added without a break
_COMPARED_OUTPUTS = 64


@dataclass(frozen=True)
class Rounding:
    """How products of one size are rounded.

    min_rows: from so many rows on alike. block: one row is rounded like them if the terms of so many inputs are added
    one after the other, and then these sums; 0 if there is no such number.
    """

    min_rows: int
    block: int


class FewRows:
    """Multiplies x [N, in] by a matrix [in, out] where N is below `min_rows`.

    padded: [in, out or more], contiguous; the matrix is its first `outputs` columns.
    """

    def __init__(self, padded: Tensor, outputs: int) -> None:
        rounding = _rounding(len(padded), outputs)
        self.min_rows = rounding.min_rows
        self._padded, self._matrix = padded, padded[:, :outputs]
        self._indices = _block_indices(len(padded), rounding.block) if rounding.block else None

    def multiply(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, out]: the product, added to the residual [N, out] if there is one."""
        if len(x) == 1 and self._indices:
            return _add_blocks(x, self._padded, self._indices, self._matrix.shape[1], residual)
        times = -(-self.min_rows // len(x))
        if residual is None:
            return torch.mm(torch.cat([x] * times), self._matrix)[: len(x)]
        return torch.addmm(torch.cat([residual] * times), torch.cat([x] * times), self._matrix)[: len(x)]


@cache
def _block_indices(inputs: int, block: int) -> tuple[Tensor, Tensor]:
    """Every input, and the first of each block; shared by all products of a size."""
    return torch.arange(inputs), torch.arange(0, inputs, block)


def _add_blocks(
    x: Tensor, padded: Tensor, indices: tuple[Tensor, Tensor], outputs: int, residual: Tensor | None = None
) -> Tensor:
    """[1, out] of x [1, in]: each input times its weights, added one after the other in each block; then the blocks.

    An embedding bag does that as fast as a product of one row.
    """
    sums: Tensor = torch.embedding_bag(padded, *indices, False, 0, False, x[0])[0][:, :outputs]
    total = sums[:1] if residual is None else residual + sums[:1]
    for block in range(1, len(sums)):
        total = total + sums[block : block + 1]
    return total


@cache
def _rounding(inputs: int, outputs: int) -> Rounding:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_COUNTS[-1], inputs, generator=generator)
    matrix = torch.rand(inputs, outputs, generator=generator).sub_(0.5)
    many = torch.mm(x, matrix)
    unlike = [count for count in _COUNTS if not torch.equal(torch.mm(x[:count], matrix), many[:count])]
    if not unlike:
        return Rounding(1, 0)
    padded, one = matrix[:, :_COMPARED_OUTPUTS].contiguous(), many[:1, :_COMPARED_OUTPUTS]
    blocks = (inputs, *range(_MAX_BLOCK, 0, -_BLOCK_STEP))
    like = (
        block
        for block in blocks
        if torch.equal(_add_blocks(x[:1], padded, _block_indices(inputs, block), len(one[0])), one)
    )
    return Rounding(_COUNTS[_COUNTS.index(unlike[-1]) + 1], next(like, 0))
