"""Detects whether other programs take the processor from the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_MIN_CPU_SHARE = 0.8  # of the wall time; a thread that waits for the others spins, so it has nearly all if undisturbed
_MIN_STEPS = 10


class ContentionMonitor:
    """Compares the wall time of decode steps with the CPU time of the thread that runs them.

    Where several threads share each operator, one that loses its processor to another program delays them all.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = self._lost = 0.0
        self._worst = (0.0, 0.0)  # lost and wall seconds of the step that lost most

    @contextmanager
    def measure_step(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.add(time.perf_counter() - wall, time.thread_time() - cpu)

    def add(self, seconds: float, cpu_seconds: float) -> None:
        lost = seconds - cpu_seconds
        self._steps += 1
        self._seconds += seconds
        self._lost += lost
        self._worst = max(self._worst, (lost, seconds))

    @property
    def detected(self) -> bool:
        """Whether other programs took a good part of the processor. Meaningless if a GPU does the work.

        The worst step is left out: it may have waited for a disk or been stopped at a terminal.
        """
        lost, seconds = self._lost - self._worst[0], self._seconds - self._worst[1]
        return self._steps >= _MIN_STEPS and lost > (1 - _MIN_CPU_SHARE) * seconds
