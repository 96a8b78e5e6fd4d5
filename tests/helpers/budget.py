"""Complexity budgets: what a reader costs on an input of eight times the size."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

from csm_cli.errors import CsmError

MAX_RATIO = 2.6  # of the cost of 2n to the cost of n: a linear reader has 2, a quadratic one 4
_DOUBLINGS = 3  # compared at once, so that a busy machine's noise does not pass for growth: 64 times if quadratic
_SMALL_SECONDS, _SMALL_BYTES = 0.01, 2 << 20  # below, a ratio is noise
_ROUNDS = 2, 8  # at least and at most


def assert_linear(read: Callable[[int], object], n: int) -> None:
    """Fails where the CPU time or memory of `read` grows by more than 2.6 times a doubling, from n to 8n units.

    Times are the best of up to eight rounds, since other processes only ever add to them. read: reads an input of so
    many units; one that is refused counts too.
    """
    sizes, ratio = (n, n << _DOUBLINGS), MAX_RATIO**_DOUBLINGS
    best = [float("inf")] * 2
    for number in range(1, _ROUNDS[1] + 1):
        best = [min(before, _seconds(read, size)) for before, size in zip(best, sizes, strict=True)]
        within = best[1] < max(_SMALL_SECONDS, ratio * best[0])
        if within and (number >= _ROUNDS[0] or best[1] < _SMALL_SECONDS):
            break
    assert within, f"CPU seconds for {sizes} units: {best}"
    peaks = [_peak_bytes(read, size) for size in sizes]
    assert peaks[1] < max(_SMALL_BYTES, ratio * peaks[0]), f"bytes for {sizes} units: {peaks}"
    if os.environ.get("CSM_TEST_BUDGETS"):  # prints the table: pytest -s
        figures = [*(f"{seconds:.3f} s" for seconds in best), *(f"{peak >> 10:,} KiB" for peak in peaks)]
        print(f"{sizes[0]:>8,} and {sizes[1]:>9,} units: {' '.join(f'{each:>12}' for each in figures)}")


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
