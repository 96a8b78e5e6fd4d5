"""On a CPU a row's product does not depend on how many rows are multiplied with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from csm_cli.models.csm.layers import Linear

VOICE = [(256, 512), (256, 256), (256, 1024), (512, 256), (256, 192), (192, 320), (192, 192), (192, 1024), (512, 192)]
OTHERS = [(192, 512), (64, 256), (48, 67), (24, 48), (1, 5), (2048, 3072), (8192, 1024)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", VOICE + OTHERS, ids=str)
def test_rows_alone_and_among_others_are_bit_identical(size: tuple[int, int], threads: int) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs, outputs = size
    linear = Linear(torch.randn(outputs, inputs, generator=generator))
    x, residual = (torch.randn(20, width, generator=generator) for width in size)
    products, sums = linear(x), linear.add_to(residual, x)
    torch.testing.assert_close(products, x @ linear.weight.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sums, products + residual, rtol=1e-4, atol=1e-3)
    for count in (1, 2, 3, 4, 5, 7, 8, 16):
        for first in range(0, 20 - count, count):
            rows = slice(first, first + count)
            assert torch.equal(linear(x[rows]), products[rows]), count
            assert torch.equal(linear.add_to(residual[rows], x[rows]), sums[rows]), count
