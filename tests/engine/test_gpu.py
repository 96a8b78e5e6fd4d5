"""On CUDA: graphs equal eager steps and a CPU's, and nothing is captured after warm-up."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny import Shape, decode_all, greedy, random_csm, text_rows

from csm_cli.bench.speed import teacher_forced_logits
from csm_cli.engine import Engine, Request, SamplingParams
from csm_cli.engine.decode_step import DecodeShape
from csm_cli.engine.replay import CudaGraphRunner
from csm_cli.models.csm.config import model_config
from csm_cli.models.csm.model import CsmModel

pytestmark = pytest.mark.gpu
FRAMES = 12
SPECIAL = [64, 65, 66]  # ids that are never decode_all
GREEDY: dict[str, Any] = {"do_sample": False, "depth_decoder_do_sample": False}
GREEDY |= {"suppress_tokens": SPECIAL, "depth_decoder_suppress_tokens": SPECIAL}


@pytest.fixture(scope="module")
def theirs() -> Any:
    return random_csm(Shape())


def on(theirs: Any, device: str, dtype: torch.dtype = torch.float32) -> CsmModel:
    config = model_config(theirs.config.to_dict())
    return CsmModel(config, theirs.state_dict(), torch.device(device), dtype)


def eager(model: CsmModel, slots: int) -> Engine:
    engine = Engine(model, slots)
    engine.runner.step = CudaGraphRunner(engine.runner.eager_step, (), None)
    return engine


def requests(rows: int, sampling: SamplingParams) -> list[Request]:
    generator = torch.Generator().manual_seed(rows)
    lengths = [20 + 37 * n % 200 for n in range(rows)]
    ids = [torch.randint(0, 250, (length,), generator=generator) for length in lengths]
    return [Request(text_rows(each, 8), replace(sampling, seed=n)) for n, each in enumerate(ids)]


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_greedy_frames_equal_the_cpus(theirs: Any, rows: int) -> None:
    submitted = requests(rows, greedy(FRAMES))
    expected = decode_all(Engine(on(theirs, "cpu"), rows), submitted)
    for engine in (Engine(on(theirs, "cuda"), rows), eager(on(theirs, "cuda"), rows)):
        for got, codes in zip(decode_all(engine, submitted), expected, strict=True):
            assert torch.equal(got, codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_equal_eager_steps(theirs: Any, dtype: torch.dtype) -> None:
    model = on(theirs, "cuda", dtype)
    submitted = requests(5, SamplingParams(0.9, 20, 0.8, 10, seed=0, max_frames=FRAMES))
    for got, expected in zip(
        decode_all(Engine(model, 4), submitted), decode_all(eager(model, 4), submitted), strict=True
    ):
        assert torch.equal(got, expected)


def test_every_bucket_replays_over_poisoned_outputs(theirs: Any) -> None:
    model = on(theirs, "cuda")
    engine = Engine(model, 8)
    runner, state = engine.runner, engine.state
    buckets = sorted({runner.kv_bucket(n) for n in range(1, state.max_seq_len)}, reverse=True)
    for rows in (8, 4, 2, 1):
        for kv_bucket in buckets:
            shape = DecodeShape(rows, kv_bucket, top_k=1, depth_top_k=1)
            codes = []
            for frame in (runner.eager_step, runner.step, runner.step):
                state.hidden.copy_(torch.linspace(-1, 1, state.hidden.numel(), device="cuda").view_as(state.hidden))
                for layer in (*state.backbone_cache.layers, *state.depth_cache.layers):
                    layer.zero_()
                state.positions.fill_(kv_bucket // 2)
                state.codes.fill_(-7)
                frame(shape)
                codes.append((state.codes[:rows].clone(), state.hidden[:rows].clone()))
                assert (state.codes[rows:] == -7).all()
            for got in codes[1:]:
                assert torch.equal(got[0], codes[0][0]) and (got[0] >= 0).all()
                torch.testing.assert_close(got[1], codes[0][1])
    assert runner.captures == 4 * len(buckets)


def test_nothing_is_captured_after_warm_up(theirs: Any) -> None:
    engine, sampling = Engine(on(theirs, "cuda"), 4), SamplingParams(0.9, 20, 0.8, 10, seed=0, max_frames=FRAMES)
    engine.prepare(sampling)
    prepared = engine.runner.captures
    for count in (1, 4, 7):
        decode_all(engine, requests(count, sampling))
    assert engine.runner.captures == prepared > 0


def test_bfloat16_starts_like_transformers(theirs: Any) -> None:
    """Half precision takes other turns in the end; the first codes of most prompts are the same."""
    submitted = requests(8, greedy(2))
    model = deepcopy(theirs).to("cuda", torch.bfloat16)
    same = 0
    for request, got in zip(
        submitted, decode_all(Engine(on(theirs, "cuda", torch.bfloat16), 8), submitted), strict=True
    ):
        ids = request.prompt[None, :, -1].cuda()
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, **GREEDY)
        same += int((expected[0, 0].cpu() == got[0]).sum())
    assert same > 0.75 * 8 * 8


@pytest.mark.triton
def test_int8_weights_change_little(theirs: Any) -> None:
    model = on(theirs, "cuda", torch.bfloat16)
    (submitted,) = requests(1, greedy(FRAMES))
    (codes,) = decode_all(Engine(model), [submitted])
    expected = teacher_forced_logits(model, submitted.prompt, codes).float()
    model.quantize()
    got = teacher_forced_logits(model, submitted.prompt, codes).float()
    assert 0 < (got - expected).square().mean().sqrt() / expected.std() < 0.2
    assert len(decode_all(Engine(model), [submitted])[0]) == FRAMES
