"""On a CPU products and functions of a batch are bit-identical to those of single rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.mimi.layers import linear, pack_weight, rowwise

SHAPES = [(256, 768), (512, 256), (1024, 1024), (1792, 256), (2048, 512), (40, 7)]
ODD = [(3, 2), (64, 1), (512, 96), (384, 384), (513, 512), (896, 256)]  # which MKL computes otherwise in a batch


def operands(positions: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(positions)
    wide, narrow = shape
    x, matrix, bias = (
        torch.randn(size, generator=generator) for size in [(5, positions, wide), (narrow, wide), (narrow,)]
    )
    return x, pack_weight(matrix / wide**0.5), bias


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("positions", [1, 2, 3, 24, 50])
def test_batched_product_is_bit_identical(positions: int, shape: tuple[int, int]) -> None:
    x, matrix, bias = operands(positions, shape)
    together = linear(x, matrix, bias)
    assert torch.equal(together, torch.cat([linear(row, matrix, bias) for row in x.split(1)]))
    torch.testing.assert_close(together, F.linear(x, matrix, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_do_not_change_the_product(shape: tuple[int, int], threads: Callable[[int], None]) -> None:
    x, matrix, _ = operands(24, shape)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found += [linear(x, matrix), torch.cat([linear(row, matrix) for row in x.split(1)])]
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("count", [1, 3, 10, 12])
def test_other_sizes_are_bit_identical(count: int, shape: tuple[int, int], threads: Callable[[int], None]) -> None:
    threads(count)
    for positions in (5, 24, 42):
        x, matrix, bias = operands(positions, shape)
        alone = torch.cat([linear(row, matrix, bias) for row in x.split(1)])
        assert torch.equal(linear(x, matrix, bias), alone)
        torch.testing.assert_close(alone, F.linear(x, matrix, bias), rtol=1e-4, atol=1e-4)


def test_rowwise_applies_a_function_to_each_row() -> None:
    x = torch.randn(3, 5, 7)
    seen: list[int] = []

    def double(row: Tensor) -> Tensor:
        seen.append(len(row))
        return row * 2

    assert torch.equal(rowwise(double, x), x * 2)
    assert seen == [1, 1, 1]
