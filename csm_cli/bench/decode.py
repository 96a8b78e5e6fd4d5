"""`csm bench decode`: the engine and transformers' `generate` in turns, on the same weights, and the floor below."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from csm_cli.bench.roofline import bandwidth, frame_bytes, timer
from csm_cli.bench.timing import PreparedBench, SpeedLoad, TimingResult, peak_memory
from csm_cli.bench.transformers_baseline import Baseline

_ROUND = 10  # frames: short, so that what else the machine does meets both sides
_WARM_UP = 3
_PROMPTS = 3

DecodeFigures = dict[str, Any]


def measure(ready: PreparedBench, load: SpeedLoad, tell: Callable[[str], None], compile: bool = False) -> DecodeFigures:
    """All figures, warm, as one flat record."""
    timed = TimingResult(ready, load, compile)
    peak, graphs = peak_memory(ready.device), _graphs(timed)
    for _ in range(_PROMPTS):
        timed.frames(_WARM_UP)
    captures = _graphs(timed) - graphs
    tell("loading transformers ...")
    baselines = _baselines(ready, timed)
    tell(f"decoding {load.frames} frames on each side ...")
    ours, theirs = _in_turns(timed, baselines)
    _, codes = timed.frames(min(_ROUND, load.frames))
    codec = median(timed.codec_frame(codes) for _ in range(_PROMPTS))
    return {
        **_described(ready, load),
        **_own(timed, median(ours), codec),
        **_compared({name: median(times) for name, times in theirs.items()}, median(ours) / load.batch),
        "first_audio_ms": 1e3 * median(timed.first_audio() for _ in range(_PROMPTS)),
        "captures_after_warmup": captures,
        "peak_memory_mb": peak,
    }


def _baselines(ready: PreparedBench, timed: TimingResult) -> dict[str, Baseline]:
    """transformers eager, and on CUDA with a static cache too, for which it compiles; warmed up."""
    eager = Baseline(ready.checkpoint, ready.device, ready.dtype)
    baselines = {"eager": eager}
    if ready.device.type == "cuda":
        baselines["static"] = eager.with_static_cache()
    for baseline in baselines.values():
        baseline.frames(timed.text(), timed.sampling(_WARM_UP))
    return baselines


def _in_turns(timed: TimingResult, baselines: dict[str, Baseline]) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each frame of both sides."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in baselines}
    while len(ours) < timed.load.frames:
        count = min(_ROUND, timed.load.frames - len(ours))
        ours += timed.frames(count)[0]
        for name, baseline in baselines.items():
            theirs[name] += baseline.frames(timed.text(), timed.sampling(count + 1))
    return ours, theirs


def _described(ready: PreparedBench, load: SpeedLoad) -> DecodeFigures:
    return {
        "bench": "decode",
        "model": ready.checkpoint.name,
        "device": ready.device.type,
        "threads": torch.get_num_threads(),
        "clock": timer(ready.device),
        "dtype": str(ready.dtype).removeprefix("torch."),
        "batch": load.batch,
        "context": load.context,
        "frames": load.frames,
    }


def _own(timed: TimingResult, frame: float, codec: float) -> DecodeFigures:
    """From seconds a frame of the whole batch, of the model and of the codec."""
    ready = timed.ready
    config, whole = ready.checkpoint.config, timed.whole_frame(frame, codec)
    floor = frame_bytes(config, ready.dtype) / bandwidth(config, ready.device)
    rtf = whole * ready.codec.frame_rate
    return {
        "ms_per_frame": 1e3 * frame,
        "codec_ms_per_frame": 1e3 * codec,
        "whole_ms_per_frame": 1e3 * whole,
        "rtf": rtf,
        "audio_seconds_per_second": timed.load.batch / rtf,
        "floor_ms_per_frame": 1e3 * floor,
        "times_floor": frame / floor,
    }


def _compared(theirs: dict[str, float], ours: float) -> DecodeFigures:
    """transformers speaks one row; against its fastest way, per frame of one row."""
    fastest = min(theirs, key=lambda name: theirs[name])
    return {
        "baseline": fastest,
        "baseline_ms_per_frame": 1e3 * theirs[fastest],
        **{f"baseline_{name}_ms_per_frame": 1e3 * seconds for name, seconds in theirs.items() if name != fastest},
        "speedup": theirs[fastest] / ours,
    }


def _graphs(timed: TimingResult) -> int:
    """How many graphs the engine has captured and torch.compile has made so far."""
    from torch._dynamo.utils import counters

    return timed.engine.runner.captures + int(counters["stats"]["unique_graphs"])
