"""Triton's kernels do what their PyTorch twins do: compiled on CUDA, elsewhere interpreted (TRITON_INTERPRET=1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csm_cli.config import Rope, StackConfig
from csm_cli.engine.sampling import Filter
from csm_cli.model import KvCache, Scatter, Span
from csm_cli.model.int8 import Int8Weight
from csm_cli.model.kernels import choice, kernels_for, plain
from csm_cli.model.stack import Linear, Norm, RopeTable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = StackConfig(1, 96, 6, 2, 24, 80, 64, 1e-5, Rope(10000.0))
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # Triton's interpreter rounds bfloat16 its own way
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=CLOSE[wanted.dtype], rtol=CLOSE[wanted.dtype])


def test_only_cuda_takes_tritons() -> None:
    assert kernels_for(torch.device("cpu")) == choice.Kernels()


@pytest.mark.triton
@DTYPES
@pytest.mark.parametrize("rows", [1, 5])
def test_join(rows: int, dtype: torch.dtype) -> None:
    x, mixed, weight = (
        random(*shape, dtype=dtype, seed=n) for n, shape in enumerate([(rows, 96), (rows, 40), (96, 40)])
    )
    norm = Norm(SIZES, x.to(HALF))  # PyTorch's
    total, normed = choice.fused().join(x, Linear(weight), mixed, norm)
    wanted, wanted_normed = plain.join(x, Linear(weight), mixed, norm)
    torch.testing.assert_close(total, wanted, atol=10 * CLOSE[dtype], rtol=CLOSE[dtype])  # ours is rounded once more
    torch.testing.assert_close(normed, wanted_normed, atol=2 * CLOSE[dtype], rtol=2 * CLOSE[dtype])
    assert_close(normed, norm(total))


@pytest.mark.triton
@DTYPES
@pytest.mark.parametrize("rows", [1, 3])
def test_gate(rows: int, dtype: torch.dtype) -> None:
    gate_up = random(rows, 2 * 1500, dtype=dtype)
    assert_close(choice.fused().gate(gate_up), plain.gate(gate_up))


@pytest.mark.triton
@DTYPES
@pytest.mark.parametrize(
    "where",
    [Span(0, 3, 7, 8), Span(1, 3, 0, 2), Span(2, 3, 4, 9), Scatter(torch.tensor([0, 5, 30], device=DEVICE), 32)],
    ids=["a position", "two positions", "a prefill", "each its own"],
)
def test_turn(where: Span | Scatter, dtype: torch.dtype) -> None:
    like = random(1, dtype=dtype)
    caches = [KvCache(SIZES, 3, 64, like) for _ in range(2)]
    positions = where.positions(DEVICE)
    rope = RopeTable(SIZES, like)._pairs[positions]
    states = random(len(positions), 6 + 2 * 2, 24, dtype=dtype)
    queries = [
        turn(states.clone(), rope, where.views(cache)[0], where.length)
        for turn, cache in zip((choice.fused().turn, plain.turn), caches, strict=True)
    ]
    assert_close(*queries)
    assert_close(caches[0].layers[0], caches[1].layers[0])
    assert caches[1].layers[0].any()


@pytest.mark.triton
@pytest.mark.parametrize("count", [64, 100])
@pytest.mark.parametrize("top_ks", [(1, 1, 1), (5, 1, 20), (50, 3, 7), (0, 2, 60)], ids=str)
def test_draw(count: int, top_ks: tuple[int, ...]) -> None:
    filter_ = Filter(3, count, DEVICE)
    widest = filter_.set([(0.7 + k / 100, k) for k in top_ks])
    temperature, beyond = filter_.temperature, filter_.beyond[:, :widest]
    for seed in range(10):
        logits = 3 * random(3, count, seed=seed)
        uniforms = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        given = (logits, uniforms[:, 1:2], temperature, beyond)
        assert torch.equal(choice.fused().draw(*given), plain.draw(*given))


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of numpy
def test_a_draw_from_what_is_not_finite_is_a_code() -> None:
    filter_ = Filter(4, 100, DEVICE)
    widest = filter_.set([(1.0, 5)] * 4)
    logits = random(4, 100)
    logits[0] = float("nan")
    logits[1] = -float("nan")
    logits[2] = -float("inf")
    logits[3, 7] = float("inf")
    codes = choice.fused().draw(logits, random(4, 1).abs(), filter_.temperature, filter_.beyond[:, :widest])
    assert (codes >= 0).all() and (codes < 100).all()


@pytest.mark.triton
@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 17, 70])
def test_product(rows: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, 300, dtype=dtype), random(72, 300, dtype=dtype, seed=1) / 17
    exact = Int8Weight(weight, plain.product)(x)
    got = Int8Weight(weight, choice.fused().product)(x)
    torch.testing.assert_close(got, exact, atol=5 * CLOSE[dtype], rtol=5 * CLOSE[dtype])


@DTYPES
def test_rounded_weights_are_near_and_leave_rows_alone(dtype: torch.dtype) -> None:
    x, weight = random(5, 64, dtype=dtype), random(48, 64, dtype=dtype, seed=1)
    rounded, wanted = Int8Weight(weight, plain.product), x.float() @ weight.float().T
    assert (rounded(x).float() - wanted).square().mean().sqrt() / wanted.std() < 0.015
    loud = torch.cat((x[:1], 1000 * x[1:]))
    assert torch.equal(rounded(loud)[:1], rounded(x)[:1])
