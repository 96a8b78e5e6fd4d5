"""`csm bench growth`: what a frame costs after much context, over one after little."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import torch

from csm_cli.bench.roofline import timer
from csm_cli.bench.timing import PreparedBench, SpeedLoad, TimingResult

_ROUNDS = 4


def measure(ready: PreparedBench, load: SpeedLoad, far: int, compile: bool = False) -> dict[str, Any]:
    """Frame times after `load.context` and after `far` positions, in turns; growth is the share that is added.

    Each turn is a whole speech: its first frames, in which a CPU writes its tape, say little of the rest.

    Raises:
        UsageError: `far` and the frames exceed the window.
    """
    sides = [TimingResult(ready, replace(load, context=context), compile) for context in (load.context, far)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for side, times in zip(sides, seconds, strict=True):
            times += side.frames(load.frames)[0]
    near, distant = map(median, seconds)
    return {
        "bench": "growth",
        "model": ready.checkpoint.name,
        "device": ready.device.type,
        "threads": torch.get_num_threads(),
        "clock": timer(ready.device),
        "batch": load.batch,
        "context": load.context,
        "far": far,
        "frames": load.frames,
        "ms_per_frame": 1e3 * near,
        "far_ms_per_frame": 1e3 * distant,
        "growth": distant / near - 1,
    }
