"""Triton kernels equal the PyTorch reference: compiled on CUDA, elsewhere interpreted (TRITON_INTERPRET=1)."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import Shape, decode_all, greedy, random_csm, text_rows
from torch import Tensor

from csm_cli.engine import Engine, Request, sampler
from csm_cli.engine.sampler import Sampler
from csm_cli.models.csm import layers, transformer
from csm_cli.models.csm.config import Rope, StackConfig, model_config
from csm_cli.models.csm.kernels import Kernels, kernels_for, reference, triton_kernels
from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCache, KVCacheView, PrefillSlots
from csm_cli.models.csm.layers import Int8Weight, Linear, LinearWeight, RMSNorm
from csm_cli.models.csm.model import CsmModel
from csm_cli.models.csm.transformer import RopeTable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = StackConfig(1, 96, 6, 2, 24, 80, 300, 1e-5, Rope(10000.0))
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # Triton's interpreter rounds bfloat16 its own way
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=CLOSE[expected.dtype], rtol=CLOSE[expected.dtype])


def norm_like(like: Tensor) -> RMSNorm:
    return RMSNorm(SIZES, like.to(HALF))  # PyTorch's


def linears(outputs: int, inputs: int, dtype: torch.dtype) -> list[LinearWeight]:
    """As it is and in 8 bits."""
    weight = random(outputs, inputs, dtype=dtype, seed=1) / inputs**0.5
    linear = Linear(weight)
    linear.matrix, linear.weight = weight.T, weight  # as it lies on CUDA
    return [linear, Int8Weight(weight)]


ROWS = pytest.mark.parametrize("rows", [1, 2, 3, 5, 20, 64])
BITS = pytest.mark.parametrize("bits", [32, 8])


def test_triton_is_used_on_cuda_only() -> None:
    assert kernels_for(torch.device("cpu")) == Kernels()


@pytest.mark.triton
def test_many_rows_fall_back_to_pytorch() -> None:
    x, linear = random(65, 96), linears(40, 96, torch.float32)[0]
    assert torch.equal(
        triton_kernels().norm_linear(x, norm_like(x), linear), reference.norm_linear(x, norm_like(x), linear)
    )


@pytest.mark.triton
@DTYPES
@ROWS
@BITS
def test_norm_linear(rows: int, bits: int, dtype: torch.dtype) -> None:
    x, linear = random(2 * rows, 96, dtype=dtype)[1::2], linears(42, 96, dtype)[bits == 8]
    assert_close(triton_kernels().norm_linear(x, norm_like(x), linear), reference.norm_linear(x, norm_like(x), linear))


@pytest.mark.triton
@DTYPES
@ROWS
@BITS
@pytest.mark.parametrize("inputs", [40, 2200])
def test_linear_add(rows: int, bits: int, inputs: int, dtype: torch.dtype) -> None:
    x, mixed = random(rows, 96, dtype=dtype), random(rows, inputs, dtype=dtype)
    linear = linears(96, inputs, dtype)[bits == 8]
    assert_close(triton_kernels().linear_add(x, linear, mixed), reference.linear_add(x, linear, mixed))


@pytest.mark.triton
@DTYPES
@ROWS
@BITS
def test_swiglu(rows: int, bits: int, dtype: torch.dtype) -> None:
    x, linear = random(rows, 96, dtype=dtype), linears(2 * 75, 96, dtype)[bits == 8]
    assert_close(triton_kernels().swiglu(x, norm_like(x), linear), reference.swiglu(x, norm_like(x), linear))


SLOTS = pytest.mark.parametrize(
    "slots",
    [
        PrefillSlots(0, 3, 7, 8),
        PrefillSlots(1, 3, 0, 2),
        PrefillSlots(2, 3, 4, 9),
        DecodeSlots(torch.tensor([0, 5, 30], device=DEVICE), 32),
        DecodeSlots(torch.tensor([0, 128, 299, 260], device=DEVICE), 300),
    ],
    ids=["a position", "two positions", "some", "each its own", "in parts"],
)


def metadata_for(
    slots: PrefillSlots | DecodeSlots, like: Tensor, cache: KVCache
) -> tuple[AttentionMetadata, KVCacheView]:
    rope = RopeTable(SIZES, like).pairs[slots.position_ids(DEVICE)]
    view = slots.views(cache)[0]
    return AttentionMetadata(slots.query_len, rope, slots.mask(like), [view]), view


@pytest.mark.triton
@DTYPES
@SLOTS
@BITS
def test_qkv_rope(slots: PrefillSlots | DecodeSlots, bits: int, dtype: torch.dtype) -> None:
    like = random(1, dtype=dtype)
    linear = linears((6 + 2 * 2) * 24, 96, dtype)[bits == 8]
    x = random(len(slots.position_ids(DEVICE)), 96, dtype=dtype)
    caches = [KVCache(SIZES, 4, 300, like) for _ in range(2)]
    queries = [
        kernel(x, norm_like(x), linear, *metadata_for(slots, like, cache))
        for kernel, cache in zip((triton_kernels().qkv_rope, reference.qkv_rope), caches, strict=True)
    ]
    assert_close(*queries)
    assert_close(caches[0].layers[0], caches[1].layers[0])
    assert caches[1].layers[0].any()


@pytest.mark.triton
@DTYPES
@SLOTS
def test_attention(slots: PrefillSlots | DecodeSlots, dtype: torch.dtype) -> None:
    cache = KVCache(SIZES, 4, 300, random(1, dtype=dtype))
    cache.layers[0].copy_(random(*cache.layers[0].shape, dtype=dtype))
    query = random(len(slots.position_ids(DEVICE)), 6, 24, dtype=dtype)
    metadata, view = metadata_for(slots, query, cache)
    assert_close(triton_kernels().attention(query, metadata, view), reference.attention(query, metadata, view))


@pytest.mark.triton
@pytest.mark.parametrize("count", [64, 100])
@pytest.mark.parametrize("top_ks", [(1, 1, 1), (5, 1, 20), (50, 3, 7), (0, 2, 60)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("times", [1, 4], ids=["3 rows", "12 rows"])
def test_sample_top_k(count: int, top_ks: tuple[int, ...], dtype: torch.dtype, times: int) -> None:
    rows = 3 * times
    sampler_ = Sampler(rows, count, DEVICE)
    top_k_max = sampler_.set([(0.7 + k / 100, k) for k in top_ks] * times)
    temperature, rank_bias = sampler_.temperature, sampler_.rank_bias[:, :top_k_max]
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.stack([torch.randperm(count, generator=generator) / 16 - 3 for _ in range(rows)]).to(DEVICE)
        uniforms = torch.rand(rows, 4, generator=generator).to(DEVICE)
        given = (logits.to(dtype), uniforms[:, 1:2], temperature, rank_bias, random(count, 20, seed=1))
        for got, expected in zip(triton_kernels().sample_top_k(*given), reference.sample_top_k(*given), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 9])
def test_equal_logits_prefer_the_lower_code(rows: int) -> None:
    sampler_ = Sampler(rows, 100, DEVICE)
    logits = torch.zeros(rows, 100, device=DEVICE)
    logits[:, 40:] = 1
    for top_k, uniform, expected in [(1, 0.9, 40), (5, 0.0, 40), (5, 0.5, 42), (5, 0.99, 44)]:
        top_k_max = sampler_.set([(1.0, top_k)] * rows)
        given = (sampler_.temperature, sampler_.rank_bias[:, :top_k_max], random(100, 8))
        codes, embedded = triton_kernels().sample_top_k(logits, torch.full((rows, 1), uniform, device=DEVICE), *given)
        assert codes.tolist() == [expected] * rows and torch.equal(embedded, given[2][[expected] * rows])


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of numpy
@pytest.mark.parametrize("rows", [4, 9])
def test_non_finite_logits_yield_a_valid_code(rows: int) -> None:
    sampler_ = Sampler(rows, 100, DEVICE)
    top_k_max = sampler_.set([(1.0, 5)] * rows)
    logits = random(rows, 100)
    logits[0] = float("nan")
    logits[1] = -float("nan")
    logits[2] = -float("inf")
    logits[3, 7] = float("inf")
    table = random(100, 8)[:, :0]
    codes, _ = triton_kernels().sample_top_k(
        logits, random(rows, 1).abs(), sampler_.temperature, sampler_.rank_bias[:, :top_k_max], table
    )
    assert (codes >= 0).all() and (codes < 100).all()


@DTYPES
def test_int8_weights_are_close_and_rows_independent(dtype: torch.dtype) -> None:
    x, weight = random(5, 64, dtype=dtype), random(48, 64, dtype=dtype, seed=1)
    rounded, expected = Int8Weight(weight), x.float() @ weight.float().T
    assert (rounded(x).float() - expected).square().mean().sqrt() / expected.std() < 0.015
    loud = torch.cat((x[:1], 1000 * x[1:]))
    assert torch.equal(rounded(loud)[:1], rounded(x)[:1])


@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 3])
def test_engine_with_triton_equals_pytorch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = random_csm(Shape())
    config = model_config(theirs.config.to_dict())
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 250, (10 + 60 * n,), generator=generator) for n in range(rows)]
    submitted = [Request(text_rows(each, 8), greedy(2)) for each in ids]
    expected = decode_all(
        Engine(CsmModel(config, theirs.state_dict(), torch.device("cpu"), torch.float32), rows), submitted
    )
    for module in (layers, transformer):
        monkeypatch.setattr(module, "is_cpu_float32", lambda like: False)  # weights lie as on CUDA
    for module in (transformer, sampler):
        monkeypatch.setattr(module, "kernels_for", lambda device: triton_kernels())
    got = decode_all(Engine(CsmModel(config, theirs.state_dict(), DEVICE, torch.float32), rows), submitted)
    for each, codes in zip(got, expected, strict=True):
        assert torch.equal(each, codes)
