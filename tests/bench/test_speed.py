"""`csm bench decode`, `batch` and `context`: the figures, and that both sides do the same work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.run import Result
from helpers.tiny import Shape, decode_all, greedy

import csm_cli.bench.timing
from csm_cli.bench.baselines import Baseline, bandwidth, frame_bytes, weight_groups
from csm_cli.bench.random_checkpoint import csm_1b_config, random_checkpoint
from csm_cli.bench.speed import compare_baselines
from csm_cli.bench.timing import BenchModel, TimedEngine, Workload
from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Engine, Request
from csm_cli.errors import UsageError
from csm_cli.models.csm.config import model_config
from csm_cli.models.mimi import ChunkDecoder, run_inline

Csm = Callable[..., Result]
CPU = torch.device("cpu")
NUMBERS = {
    "ms_per_frame",
    "codec_ms_per_frame",
    "total_ms_per_frame",
    "rtf",
    "audio_seconds_per_second",
    "roofline_ms_per_frame",
    "times_roofline",
    "baseline_ms_per_frame",
    "speedup",
    "first_audio_ms",
    "peak_memory_mb",
}


@pytest.fixture
def bench_model(tiny_checkpoint: Path) -> BenchModel:
    return BenchModel(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32)


def test_roofline_of_csm_1b_equals_a_manual_count() -> None:
    config = model_config(csm_1b_config().to_dict())
    assert {group.name: (group.weights, group.reads) for group in weight_groups(config)} == {
        "backbone": (973_146_112, 1),
        "head": (4_200_448, 1),
        "depth decoder": (111_158_272, 31),
        "depth heads": (2_100_224, 31),
        "projector": (2_097_152, 1),
    }
    assert sum(group.per_frame for group in weight_groups(config)) == pytest.approx(4.49e9, rel=1e-3)
    assert frame_bytes(config, torch.bfloat16) == pytest.approx(8.98e9, rel=1e-3)


def test_bandwidth_is_plausible(tiny_checkpoint: Path) -> None:
    assert 1e8 < bandwidth(open_checkpoint(str(tiny_checkpoint)).config, CPU) < 1e13


def test_random_checkpoint_can_be_decoded() -> None:
    checkpoint = random_checkpoint(Shape().config())
    table = checkpoint.weights["backbone_model.embed_tokens.embed_audio_tokens.weight"]
    assert torch.equal(table, checkpoint.weights["depth_decoder.model.embed_tokens.weight"])
    timed = TimedEngine(BenchModel(checkpoint, CPU, torch.float32), Workload(2, 5, 4))
    seconds, codes = timed.frames(4)
    assert len(seconds) == 4 and codes.shape == (4, 2, 8)
    assert timed.first_audio() > 0


def test_workload_beyond_the_context_window_is_refused(bench_model: BenchModel) -> None:
    with pytest.raises(UsageError, match="window of 512"):
        TimedEngine(bench_model, Workload(1, 500, 13))


def test_speech_does_not_end_early(silent_checkpoint: Path) -> None:
    """Even if every code is 0, both sides decode the requested number of frames."""
    checkpoint = open_checkpoint(str(silent_checkpoint))
    bench = BenchModel(checkpoint, CPU, torch.float32)
    assert len(TimedEngine(bench, Workload(1, 5, 6)).frames(6)[0]) == 6
    assert len(Baseline(checkpoint, CPU, torch.float32).frames(bench.request(5, 7))) == 6


@pytest.mark.parametrize("shape", [Shape(), Shape(rope="plain", kv_heads=4)], ids=str)
def test_baseline_has_the_checkpoints_config(shape: Shape) -> None:
    checkpoint = random_checkpoint(shape.config())
    config = Baseline(checkpoint, CPU, torch.float32).model.config
    assert model_config(config.to_dict()) == checkpoint.config
    assert config.rope_parameters == shape.config().rope_parameters


def test_baseline_has_the_checkpoints_weights(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    state = Baseline(checkpoint, CPU, torch.float32).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.weights.items())


def test_timed_engine_decodes_as_the_engine_does(bench_model: BenchModel) -> None:
    timed = TimedEngine(bench_model, Workload(1, 9, 5))
    _, codes = timed.frames(5)
    request = Request(bench_model.request(9, 5).prompt, greedy(5))
    assert codes[:, 0].shape == decode_all(Engine(bench_model.model), [request])[0].shape


def test_fastest_baseline_counts_per_row() -> None:
    assert compare_baselines({"eager": 0.8, "static": 0.4}, 1.6 / 16) == {
        "baseline": "static",
        "baseline_ms_per_frame": 400,
        "baseline_eager_ms_per_frame": 800,
        "speedup": pytest.approx(4),
    }


def test_decode_ends_with_one_json_line(csm: Csm, tiny_checkpoint: Path) -> None:
    result = csm("bench", "decode", "--model", tiny_checkpoint, "--frames", 3, "--batch", 2, "--context", 7)
    assert result.code == 0, result.err
    figures = json.loads(result.out.splitlines()[-1])
    assert all(isinstance(figures[name], float) and figures[name] > 0 for name in NUMBERS)
    assert figures["captures_after_warmup"] == 0
    assert (figures["device"], figures["dtype"], figures["batch"], figures["context"]) == ("cpu", "float32", 2, 7)
    ratio = figures["ms_per_frame"] / figures["roofline_ms_per_frame"]
    assert figures["times_roofline"] == pytest.approx(ratio, rel=0.2)
    assert "speedup" in result.err


def test_decode_compares_int8_with_the_original(csm: Csm, tiny_checkpoint: Path) -> None:
    result = csm("bench", "decode", "--model", tiny_checkpoint, "--frames", 2, "--quantize", "int8", "--json")
    assert result.code == 0, result.err
    assert result.json["quantize"] == "int8" and 0.8 < result.json["codes_equal"] <= 1


def test_batch_speedup_and_quiet_json(csm: Csm, tiny_checkpoint: Path) -> None:
    result = csm("bench", "batch", "--model", tiny_checkpoint, "--frames", 4, "--batch", 4, "--context", 7, "--json")
    assert result.code == 0 and not result.err
    figures = result.json
    ratio = figures["audio_seconds_per_second"] / figures["single_audio_seconds_per_second"]
    assert figures["speedup"] == pytest.approx(ratio, rel=0.01)
    assert figures["single_total_ms_per_frame"] > 0 and figures["codec_ms_per_frame"] > 0


def test_deferred_codec_is_timed_together_with_the_model(
    bench_model: BenchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = TimedEngine(bench_model, Workload(2, 5, 13))
    assert TimedEngine(bench_model, Workload(1, 5, 13)).total_frame(1.0, 2.0) == 3.0
    monkeypatch.setattr(csm_cli.bench.timing, "ChunkDecoder", lambda codec, rows: ChunkDecoder(codec, run_inline, rows))
    assert 0 < timed.total_frame(1.0, 2.0) < 1.0


def test_context_reports_the_added_share(csm: Csm, tiny_checkpoint: Path) -> None:
    command = ("bench", "context", "--model", tiny_checkpoint, "--frames", 4)
    figures = csm(*command, "--context", 7, "--long-context", 200, "--json").json
    assert (figures["context"], figures["long_context"]) == (7, 200)
    ratio = figures["long_ms_per_frame"] / figures["ms_per_frame"]
    assert figures["added_share"] == pytest.approx(ratio - 1, abs=0.01)
    beyond = csm(*command, "--long-context", 510)
    assert beyond.code == 2 and "window of 512" in beyond.err
