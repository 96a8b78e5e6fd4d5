"""Decode steps can be captured: static buffers and shapes, no synchronization; replays equal calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.recorder import Recorder
from helpers.tiny import Shape, decode_all, ours, random_csm, text_rows
from torch import Tensor

from csm_cli.engine import Engine, Request, SamplingParams
from csm_cli.engine.decode_step import KV_BUCKET_STEP
from csm_cli.engine.replay import CudaGraphRunner
from csm_cli.engine.runner import ModelRunner
from csm_cli.errors import UsageError
from csm_cli.models.csm.model import CsmModel

SAMPLED = SamplingParams(temperature=0.9, top_k=20, depth_temperature=0.8, depth_top_k=10, seed=0, max_frames=12)


@pytest.fixture(scope="module")
def model() -> CsmModel:
    return ours(random_csm(Shape(codebooks=4)))[0]


def request(seed: int, length: int, frames: int = 12) -> Request:
    generator = torch.Generator().manual_seed(seed)
    rows = text_rows(torch.randint(0, 250, (length,), generator=generator), 4)
    return Request(rows, replace(SAMPLED, seed=seed, max_frames=frames))


def engine_with_graphs(model: CsmModel, slots: int, steps: int = 1) -> tuple[Engine, Recorder]:
    """An engine whose steps are recorded and replayed."""
    engine, recorder = Engine(model, slots), Recorder()
    runner, state = engine.runner, engine.state
    runner.step = CudaGraphRunner(runner.eager_step, (state.hidden, state.positions, state.codes), recorder)
    runner.steps_per_sync = steps
    return engine, recorder


@pytest.mark.parametrize(("rows", "context"), [(1, 20), (2, 120), (4, 300), (8, 100)])
def test_replay_over_poisoned_results_equals_a_call(model: CsmModel, rows: int, context: int) -> None:
    submitted = [request(n, context + n) for n in range(rows)]
    engine, recorder = engine_with_graphs(model, rows)
    for expected, got in zip(decode_all(Engine(model, rows), submitted), decode_all(engine, submitted), strict=True):
        assert torch.equal(expected, got)
    assert recorder.captured >= 1


def test_prompts_of_one_bucket_share_a_capture(model: CsmModel) -> None:
    engine, recorder = engine_with_graphs(model, 2)
    decode_all(engine, [request(1, 20), request(2, 30)])
    before = recorder.captured
    for seed in (3, 5, 7):
        decode_all(engine, [request(seed, 20 + seed), request(seed + 1, 40)])
    assert recorder.captured == before == engine.runner.captures


def test_capturing_preserves_the_rows(model: CsmModel) -> None:
    engine, _ = engine_with_graphs(model, 2)
    submitted = [request(1, 20), request(2, 30)]
    for each in submitted:
        engine.admit(each)
    engine.prepare(SAMPLED)
    prepared = engine.runner.captures
    frames: dict[Request, list[Tensor]] = {each: [] for each in submitted}
    while engine.busy:
        for frame in engine.step():
            frames[frame.request].append(frame.codes)
    for each, expected in zip(submitted, decode_all(Engine(model, 2), submitted), strict=True):
        assert torch.equal(torch.stack(frames[each]), expected)
    assert prepared == engine.runner.captures == 2 * (engine.state.kv_capacity // KV_BUCKET_STEP)


@pytest.mark.parametrize("steps", [2, 4, 5])
def test_frames_after_the_end_are_dropped(model: CsmModel, steps: int) -> None:
    """Rows of other lengths, more of them than slots, and turns that go on where the last one ended."""
    submitted = [request(n, 10 + 7 * n, frames=n + 1) for n in range(7)]
    engine = Engine(model, 4)
    engine.runner.steps_per_sync = steps
    expected = decode_all(Engine(model, 4), submitted)
    for got, codes in zip(decode_all(engine, submitted), expected, strict=True):
        assert len(got) == len(codes) and torch.equal(got, codes)


def test_steps_may_end_at_the_last_position(model: CsmModel) -> None:
    engine = Engine(model)
    engine.runner.steps_per_sync = 4
    full = request(1, model.config.backbone.max_seq_len - 6, frames=6)
    assert torch.equal(decode_all(engine, [full])[0], decode_all(Engine(model), [full])[0])


def test_while_waiting_is_called_between_launch_and_sync(model: CsmModel) -> None:
    engine, _ = engine_with_graphs(model, 1, steps=4)
    engine.admit(request(1, 20))
    seen: list[int] = []
    frames = engine.step(lambda: seen.append(int(engine.state.positions[0])))
    assert (seen, len(frames)) == ([20 + 4], 4)


def test_synchronizing_inside_a_step_is_refused(model: CsmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = engine_with_graphs(model, 1)
    embed = model.embed_frames
    monkeypatch.setattr(model, "embed_frames", lambda codes: embed(codes * int(codes.sum() >= 0)))
    with pytest.raises(AssertionError, match="item"):
        decode_all(engine, [request(1, 5)])


def test_kv_bucket_follows_the_context(model: CsmModel) -> None:
    engine = Engine(model)
    capacity = engine.state.kv_capacity
    assert [engine.runner.kv_bucket(n) for n in (1, 128, 129, 512, 513)] == [128, 128, 256, 512, capacity]
    coarse = ModelRunner(model, engine.state, compile=False)
    coarse.coarse_buckets = True  # as where each costs a capture or a compilation
    assert [coarse.kv_bucket(n) for n in (1, 256, 257, 513)] == [256, 256, 512, capacity]
    assert capacity % KV_BUCKET_STEP == 0 and capacity > model.config.backbone.max_seq_len


def test_compile_without_a_compiler_is_refused(model: CsmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="--compile needs a C"):
        Engine(model, compile=True)


def test_compile_is_refused_if_torch_has_a_path_with_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ours(random_csm(Shape(codebooks=2)))[0]
    monkeypatch.setattr(torch, "__path__", ["/home/me/my project/torch"])
    with pytest.raises(UsageError, match="a path with spaces"):
        Engine(small, compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_steps_equal_eager_steps() -> None:
    small = ours(random_csm(Shape(codebooks=2)))[0]
    if " " in torch.__path__[0]:  # refused there, as the test above has it
        return
    generator = torch.Generator().manual_seed(1)
    submitted = [Request(text_rows(torch.randint(0, 250, (20,), generator=generator), 2), SAMPLED)]
    (expected,), (got,) = decode_all(Engine(small), submitted), decode_all(Engine(small, compile=True), submitted)
    assert torch.equal(expected, got)
