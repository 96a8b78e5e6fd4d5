"""Work over processes: in order, and no death unnoticed."""

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
def test_a_failure_is_the_callers(workers: int) -> None:
    with pytest.raises(InputError, match="a hundred"):
        list(map_processes(doubled, [1, 100, 2], workers))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(CsmError, match=r"a worker was killed from outside.*run again to go on"):
        list(map_processes(doubled, [1, 101, 2, 3], 2))


def test_whoever_stops_listening_does_not_wait() -> None:
    results = map_processes(doubled, [1, 2, 3, 4, 5, 102], 2)
    assert next(results) == 2
    results.close()
    assert not multiprocessing.active_children()
