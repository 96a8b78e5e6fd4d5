"""`csm bench batch`: what many rows at once give over one."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from csm_cli.bench.roofline import timer
from csm_cli.bench.timing import PreparedBench, SpeedLoad, TimingResult

_ROUNDS = 4


def measure(ready: PreparedBench, load: SpeedLoad, compile: bool = False) -> dict[str, Any]:
    """Audio seconds per second of one row and of `load.batch`, codec included, and how many times more that is."""
    one, many = TimingResult(ready, replace(load, batch=1), compile), TimingResult(ready, load, compile)
    share = -(-load.frames // _ROUNDS)
    alone, together, codec, codecs, single, whole = [], [], [], [], [], []
    for _ in range(_ROUNDS):
        seconds, codes = one.frames(share)
        alone += seconds
        codec.append(one.codec_frame(codes))
        seconds, codes = many.frames(share)
        together += seconds
        codecs.append(many.codec_frame(codes))
        single.append(one.speech())
        whole.append(many.speech())
    first, batched = _throughput(ready, 1, median(single)), _throughput(ready, load.batch, median(whole))
    return {
        "bench": "batch",
        "model": ready.checkpoint.name,
        "device": ready.device.type,
        "clock": timer(ready.device),
        "batch": load.batch,
        "context": load.context,
        "frames": load.frames,
        "single_ms_per_frame": 1e3 * median(alone),
        "ms_per_frame": 1e3 * median(together),
        "single_codec_ms_per_frame": 1e3 * median(codec),
        "codec_ms_per_frame": 1e3 * median(codecs),
        "single_whole_ms_per_frame": 1e3 * median(single),
        "whole_ms_per_frame": 1e3 * median(whole),
        "single_audio_seconds_per_second": first,
        "audio_seconds_per_second": batched,
        "gain": batched / first,
        "gain_without_codec": load.batch * median(alone) / median(together),
    }


def _throughput(ready: PreparedBench, rows: int, seconds: float) -> float:
    """From seconds a frame of all rows."""
    return rows / (seconds * ready.codec.frame_rate)
