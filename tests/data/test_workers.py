"""Work over processes: results in order, killed workers reported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from csm_cli.data.workers import map_processes
from csm_cli.errors import CsmError, InputError


def doubled(number: int) -> int:
    if number == 100:
        raise InputError("a hundred")
    if number == 101:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 102:
        time.sleep(600)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(map_processes(doubled, range(9), workers)) == list(range(0, 18, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_is_raised_to_the_caller(workers: int) -> None:
    with pytest.raises(InputError, match="a hundred"):
        list(map_processes(doubled, [1, 100, 2], workers))
    assert not multiprocessing.active_children()


def test_killed_worker_is_reported() -> None:
    with pytest.raises(CsmError, match=r"a worker process was killed.*run again to resume"):
        list(map_processes(doubled, [1, 101, 2, 3], 2))


def test_closing_the_results_stops_the_workers() -> None:
    results = map_processes(doubled, [1, 2, 3, 4, 5, 102], 2)
    assert next(results) == 2
    results.close()
    assert not multiprocessing.active_children()
