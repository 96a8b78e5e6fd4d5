"""`csm bench decode`, `batch`, `growth`, `start`: what is counted, what is told, that both sides do the same work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Shape, greedy, random_csm, spoken, text_rows

import csm_cli.bench.timing
from csm_cli.bench import start
from csm_cli.bench.decode import _compared
from csm_cli.bench.random_checkpoint import csm_1b, random_checkpoint
from csm_cli.bench.roofline import bandwidth, frame_bytes, weight_pieces
from csm_cli.bench.timing import PreparedBench, SpeedLoad, TimingResult
from csm_cli.bench.transformers_baseline import Baseline, transformers_config
from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Engine, Request
from csm_cli.errors import CsmError, UsageError
from csm_cli.models.csm.config import model_config
from csm_cli.models.mimi import ChunkDecoder, run_inline

CPU = torch.device("cpu")
NUMBERS = {
    "ms_per_frame",
    "codec_ms_per_frame",
    "whole_ms_per_frame",
    "rtf",
    "audio_seconds_per_second",
    "floor_ms_per_frame",
    "times_floor",
    "baseline_ms_per_frame",
    "speedup",
    "first_audio_ms",
    "peak_memory_mb",
}


def test_the_floor_of_csm_1b_is_what_a_hand_counts() -> None:
    config = model_config(csm_1b().to_dict())
    assert {piece.name: (piece.weights, piece.reads) for piece in weight_pieces(config)} == {
        "backbone": (973_146_112, 1),
        "head": (4_200_448, 1),
        "depth decoder": (111_158_272, 31),
        "depth heads": (2_100_224, 31),
        "projector": (2_097_152, 1),
    }
    assert sum(piece.per_frame for piece in weight_pieces(config)) == pytest.approx(4.49e9, rel=1e-3)
    assert frame_bytes(config, torch.bfloat16) == pytest.approx(8.98e9, rel=1e-3)


def test_bandwidth_is_a_plausible_number_of_bytes(tiny_checkpoint: Path) -> None:
    assert 1e8 < bandwidth(open_checkpoint(str(tiny_checkpoint)).config, CPU) < 1e13


def test_random_weights_make_a_checkpoint_that_speaks() -> None:
    checkpoint = random_checkpoint(Shape().config())
    table = checkpoint.weights["backbone_model.embed_tokens.embed_audio_tokens.weight"]
    assert torch.equal(table, checkpoint.weights["depth_decoder.model.embed_tokens.weight"])
    timed = TimingResult(PreparedBench(checkpoint, CPU, torch.float32), SpeedLoad(2, 5, 4))
    seconds, codes = timed.frames(4)
    assert len(seconds) == 4 and codes.shape == (4, 2, 8)
    assert timed.first_audio() > 0


def test_a_load_beyond_the_window_is_refused(tiny_checkpoint: Path) -> None:
    ready = PreparedBench(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32)
    with pytest.raises(UsageError, match="window of 512"):
        TimingResult(ready, SpeedLoad(1, 500, 13))


def test_no_frame_ends_the_speech(mute_checkpoint: Path) -> None:
    """Even where every code is 0: both sides decode as many frames as they were told."""
    checkpoint = open_checkpoint(str(mute_checkpoint))
    timed = TimingResult(PreparedBench(checkpoint, CPU, torch.float32), SpeedLoad(1, 5, 6))
    assert len(timed.frames(6)[0]) == 6
    assert len(Baseline(checkpoint, CPU, torch.float32).frames(timed.text(), timed.sampling(7))) == 6


@pytest.mark.parametrize("shape", [Shape(), Shape(rope="plain", kv_heads=4)], ids=str)
def test_the_baseline_is_transformers_on_the_same_weights(shape: Shape) -> None:
    theirs = random_csm(shape)
    config = model_config(theirs.config.to_dict())
    rebuilt = transformers_config(config, theirs.config.codec_config.to_dict())
    assert model_config(rebuilt.to_dict()) == replace(config, eos=config.eos)
    assert rebuilt.rope_parameters == theirs.config.rope_parameters


def test_the_baselines_weights_are_the_checkpoints(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    state = Baseline(checkpoint, CPU, torch.float32)._model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint.weights.items())


def test_the_timed_engine_says_what_the_engine_says(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    timed = TimingResult(PreparedBench(checkpoint, CPU, torch.float32), SpeedLoad(1, 9, 5))
    again = TimingResult(timed.ready, timed.load)
    _, codes = timed.frames(5)
    request = Request(text_rows(again.text(), 8), greedy(5))
    assert codes[:, 0].shape == spoken(Engine(timed.ready.model), [request])[0].shape


def test_the_fastest_baseline_counts_and_rows_share_a_step() -> None:
    figures = _compared({"eager": 0.8, "static": 0.4}, 1.6 / 16)
    assert figures == {
        "baseline": "static",
        "baseline_ms_per_frame": 400,
        "baseline_eager_ms_per_frame": 800,
        "speedup": pytest.approx(4),
    }


def test_decode_ends_with_one_flat_line_of_figures(csm: Callable[..., Any], tiny_checkpoint: Path) -> None:
    told = csm("bench", "decode", "--model", tiny_checkpoint, "--frames", 3, "--batch", 2, "--context", 7)
    assert told.code == 0, told.err
    figures = json.loads(told.out.splitlines()[-1])
    assert all(isinstance(figures[name], float) and figures[name] > 0 for name in NUMBERS)
    assert figures["captures_after_warmup"] == 0
    assert (figures["device"], figures["dtype"], figures["batch"], figures["context"]) == ("cpu", "float32", 2, 7)
    assert figures["times_floor"] == pytest.approx(figures["ms_per_frame"] / figures["floor_ms_per_frame"], rel=0.2)
    assert "speedup" in told.err


def test_batch_tells_its_gain_and_nothing_else_with_json(csm: Callable[..., Any], tiny_checkpoint: Path) -> None:
    told = csm("bench", "batch", "--model", tiny_checkpoint, "--frames", 4, "--batch", 4, "--context", 7, "--json")
    assert told.code == 0 and told.err == ""
    figures = told.json
    gain = figures["audio_seconds_per_second"] / figures["single_audio_seconds_per_second"]
    assert figures["gain"] == pytest.approx(gain, rel=0.01)


def test_a_codec_beside_the_frames_is_timed_with_them(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = TimingResult(PreparedBench(open_checkpoint(str(tiny_checkpoint)), CPU, torch.float32), SpeedLoad(2, 5, 13))
    assert TimingResult(timed.ready, SpeedLoad(1, 5, 13)).whole_frame(1.0, 2.0) == 3.0
    monkeypatch.setattr(csm_cli.bench.timing, "ChunkDecoder", lambda codec, rows: ChunkDecoder(codec, run_inline, rows))
    assert 0 < timed.whole_frame(1.0, 2.0) < 1.0


def test_growth_is_the_share_that_more_context_adds(csm: Callable[..., Any], tiny_checkpoint: Path) -> None:
    told = csm("bench", "growth", "--model", tiny_checkpoint, "--frames", 4, "--context", 7, "--far", 200, "--json")
    figures = told.json
    assert (figures["context"], figures["far"]) == (7, 200)
    assert figures["growth"] == pytest.approx(figures["far_ms_per_frame"] / figures["ms_per_frame"] - 1, abs=0.01)
    beyond = csm("bench", "growth", "--model", tiny_checkpoint, "--frames", 4, "--far", 510)
    assert beyond.code == 2 and "window of 512" in beyond.err


def test_start_is_told_over_what_cannot_be_helped(csm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> tuple[float, str]:
        if "-c" in command:
            return 2.0, ""
        return 6.0, json.dumps({"rtf": 0.5, "duration_s": 4.0, "model": "x"})

    monkeypatch.setattr(start, "_run", run)
    assert csm("bench", "start", "--json").json == {
        "bench": "start",
        "model": "x",
        "say_seconds": 6.0,
        "import_torch_seconds": 2.0,
        "decode_seconds": 2.0,
        "times_needed": 1.5,
    }


def test_start_says_ten_words_and_a_failure_is_told() -> None:
    assert len(start.SENTENCE.split()) == 10
    with pytest.raises(CsmError, match="nothing"):
        start.measure("/nothing/there", runs=1)
