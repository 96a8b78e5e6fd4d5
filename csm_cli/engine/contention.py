"""Whether a run has the processor to itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_ENOUGH = 0.8  # of the time; a thread that waits for others spins, and has all of it where nobody takes its processor
_FEWEST = 10  # steps that tell something


class ContentionMonitor:
    """Adds up how long an engine's steps take, and what of the processor the thread that takes them has meanwhile.

    Where several threads work on each operator, one that another program keeps from its processor keeps all waiting.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = self._lost = 0.0
        self._worst = (0.0, 0.0)  # lost and all seconds of the step that waited longest

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a step."""
        began, before = time.perf_counter(), time.thread_time()
        yield
        self.add(time.perf_counter() - began, time.thread_time() - before)

    def add(self, seconds: float, processor_seconds: float) -> None:
        lost = seconds - processor_seconds
        self._steps += 1
        self._seconds += seconds
        self._lost += lost
        self._worst = max(self._worst, (lost, seconds))

    @property
    def crowded(self) -> bool:
        """Whether other programs took a good part of the processor. Says nothing where a GPU does the work.

        The worst step does not count: it may have waited for a disk, or was stopped at a terminal.
        """
        lost, seconds = self._lost - self._worst[0], self._seconds - self._worst[1]
        return self._steps >= _FEWEST and lost > (1 - _ENOUGH) * seconds
