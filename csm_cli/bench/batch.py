"""`csm bench batch`: what many rows at once give over one."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

from csm_cli.bench.timed import Load, Ready, Timed

_ROUNDS = 4


def measure(ready: Ready, load: Load) -> dict[str, Any]:
    """Audio seconds per second of one row and of `load.batch`, codec included, and how many times more that is."""
    one, many = Timed(ready, replace(load, batch=1)), Timed(ready, load)
    share = -(-load.frames // _ROUNDS)
    alone, together, codec = [], [], []
    for _ in range(_ROUNDS):
        seconds, codes = one.frames(share)
        alone += seconds
        together += many.frames(share)[0]
        codec.append(one.codec_frame(codes))
    first = _throughput(ready, 1, median(alone), median(codec))
    batched = _throughput(ready, load.batch, median(together), median(codec))
    return {
        "bench": "batch",
        "model": ready.checkpoint.name,
        "device": ready.device.type,
        "batch": load.batch,
        "context": load.context,
        "frames": load.frames,
        "single_ms_per_frame": 1e3 * median(alone),
        "ms_per_frame": 1e3 * median(together),
        "codec_ms_per_frame": 1e3 * median(codec),
        "single_audio_seconds_per_second": first,
        "audio_seconds_per_second": batched,
        "gain": batched / first,
        "gain_without_codec": load.batch * median(alone) / median(together),
    }


def _throughput(ready: Ready, rows: int, frame: float, codec: float) -> float:
    return rows / ((frame + rows * codec) * ready.codec.frame_rate)
