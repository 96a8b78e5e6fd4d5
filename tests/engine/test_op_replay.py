"""Op replay equals calling the function, whatever the results held before."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.recorder import tensors
from helpers.tiny import Shape, decode_all, ours, random_csm, text_rows
from torch import Tensor
from torch.nn import functional as F

from csm_cli.engine import Engine, Request, SamplingParams
from csm_cli.engine import replay as replays
from csm_cli.engine.replay import CudaGraphRunner, OpReplay
from csm_cli.models.csm.model import CsmModel

SAMPLED = SamplingParams(temperature=0.9, top_k=20, depth_temperature=0.8, depth_top_k=10, seed=0, max_frames=40)


@pytest.fixture(scope="module")
def model() -> CsmModel:
    return ours(random_csm(Shape(codebooks=4)))[0]


def request(seed: int, length: int) -> Request:
    ids = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed))
    return Request(text_rows(ids, 4), replace(SAMPLED, seed=seed))


def spoil(replay: OpReplay[str]) -> None:
    """Every result that is computed anew each time is made wrong."""
    for call in replay.ops:
        for result in tensors(call.keywords.get("out", ())) if isinstance(call, partial) else []:
            result.fill_(float("nan") if result.is_floating_point() else 1)


def mixed(x: Tensor, weight: Tensor, total: Tensor) -> None:
    """Functions and methods, with and without `out`; views, pairs, numbers, writing in place and by index."""
    product = torch.mm(x, weight)
    left, right = product.chunk(2, -1)
    gated = F.silu(left, inplace=True).mul_(right)
    values, ids = gated.topk(2)
    attended = F.scaled_dot_product_attention(values[None], values[None], values[None])[0]
    x[:, : gated.shape[1]] = gated / gated.norm()
    x[:2] += weight[ids[0]]
    total.add_(attended.softmax(-1).cumsum(-1)[:, :1] * len(x))
    total.masked_fill_(~(total > -torch.ones(1)), 0)


def test_replay_equals_calls() -> None:
    def start() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        return torch.randn(3, 8), torch.randn(8, 8), torch.zeros(3, 1)

    called, replayed = start(), start()
    replay = OpReplay[str](lambda key: mixed(*replayed))
    for turn in range(6):
        mixed(*called)
        spoil(replay)
        replay("same")
        assert all(torch.equal(a, b) for a, b in zip(called, replayed, strict=True)), f"call {turn}"
    assert replay.captures == 1


def test_views_and_numbers_are_not_recorded() -> None:
    x, y = torch.zeros(2, 4), torch.zeros(4)

    def fn(key: str) -> None:
        y.copy_(x.view(4, 2)[1:3].flatten().unsqueeze(0)[0] + len(x) * x.shape[1])

    replay = OpReplay[str](fn)
    for _ in range(3):
        replay("same")
    assert len(replay.ops) == 2 and y.tolist() == [8.0] * 4  # the sum and the copy


def test_only_the_last_keys_recording_is_stored() -> None:
    made: list[weakref.ref[Tensor]] = []
    x = torch.ones(3)

    def fn(key: int) -> None:
        result = x * key
        made.append(weakref.ref(result))
        x.copy_(result).clamp_(max=9)

    replay = OpReplay[int](fn)
    for key in (2, 2, 2, 3, 3, 3, 2):
        replay(key)
    gc.collect()
    assert x.tolist() == [9.0] * 3
    assert replay.captures == 2 and not any(ref() is not None for ref in made)


def test_large_results_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    x = torch.ones(3)

    def fn(key: str) -> None:
        result = x + 1
        made.append(weakref.ref(result))
        x.copy_(result)

    monkeypatch.setattr(replays, "_MAX_BYTES", x.nbytes - 1)
    replay = OpReplay[str](fn)
    for _ in range(4):
        replay("same")
    gc.collect()
    assert x.tolist() == [5.0] * 3 and len(made) == 4
    assert not any(ref() is not None for ref in made)


def test_interrupted_recording_is_not_replayed() -> None:
    x, fails = torch.zeros(2), [False, True, False, False]

    def fn(key: str) -> None:
        x.add_(1)
        if fails.pop(0):
            raise KeyboardInterrupt
        x.mul_(2)

    replay = OpReplay[str](fn)
    replay("same")
    with pytest.raises(KeyboardInterrupt):
        replay("same")
    for _ in range(2):
        replay("same")
    assert x.tolist() == [18.0, 18.0] and replay.captures == 1 and len(replay.ops) == 2


@pytest.mark.parametrize("lengths", [[20], [120, 3, 110], [250, 100, 5, 9, 30]])
def test_engine_with_replay_equals_eager_engine(model: CsmModel, lengths: list[int]) -> None:
    """Other extents and fewer rows on the way, so that tapes are written anew."""
    submitted = [request(seed, length) for seed, length in enumerate(lengths)]
    plain = Engine(model, slots=len(lengths))
    plain.runner.step = CudaGraphRunner(plain.runner.eager_step, (), None)
    engine = Engine(model, slots=len(lengths))
    for expected, got in zip(decode_all(plain, submitted), decode_all(engine, submitted), strict=True):
        assert torch.equal(expected, got)
    assert engine.runner.captures >= 1


def test_step_is_called_twice_and_then_replayed(model: CsmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, called = Engine(model), []
    head = model.head
    monkeypatch.setattr(model, "head", lambda x: (called.append(x), head(x))[1])
    (codes,) = decode_all(engine, [request(1, 20)])
    assert len(called) == 2 < len(codes)
