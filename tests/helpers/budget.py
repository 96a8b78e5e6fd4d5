"""Complexity budgets: what a reader costs on an input of twice the size."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

from csm_cli.errors import CsmError

MAX_RATIO = 2.6  # of the cost of 2n to the cost of n: a linear reader has 2, a quadratic one 4
_SMALL_SECONDS, _SMALL_BYTES = 0.01, 2 << 20  # below, a ratio is noise, and 2n that cheap is within any budget
_ROUNDS = 2, 8  # at least and at most


def assert_linear(read: Callable[[int], object], n: int) -> None:
    """Fails where `read(2n)` takes more than 2.6 times the CPU time or the memory of `read(n)`.

    Times are the best of up to eight rounds, since other processes only ever add to them. read: reads an input of so
    many units; one that is refused counts too.
    """
    best = [float("inf")] * 2
    for number in range(1, _ROUNDS[1] + 1):
        best = [min(before, _seconds(read, size)) for before, size in zip(best, (n, 2 * n), strict=True)]
        within = best[1] < max(_SMALL_SECONDS, MAX_RATIO * best[0])
        if within and (number >= _ROUNDS[0] or best[1] < _SMALL_SECONDS):
            break
    assert within, f"CPU seconds for n and 2n: {best}"
    peaks = [_peak_bytes(read, size) for size in (n, 2 * n)]
    assert peaks[1] < max(_SMALL_BYTES, MAX_RATIO * peaks[0]), f"bytes for n and 2n: {peaks}"


def _seconds(read: Callable[[int], object], size: int) -> float:
    gc.disable()  # its passes grow with everything that pytest holds
    try:
        start = time.process_time()
        with suppress(CsmError):
            read(size)
        return time.process_time() - start
    finally:
        gc.enable()


def _peak_bytes(read: Callable[[int], object], size: int) -> int:
    tracemalloc.start()
    try:
        with suppress(CsmError):
            read(size)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
