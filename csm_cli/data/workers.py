"""Work spread over processes, its results in order; a process that dies is noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from csm_cli.errors import CsmError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_processes(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`work` of each item; in this process where there is one worker.

    Raises:
        CsmError: a worker was killed. Whatever `work` raises.
    """
    if workers == 1:
        yield from map(work, items)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may wait for ever
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        yield from _ordered(pool, work, items, 2 * workers)
    except BrokenProcessPool as error:
        hint = "run again to go on, with fewer --jobs if memory is short"
        raise CsmError(f"a worker was killed from outside, perhaps for its memory; {hint}") from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # what they are at is done again in the next run
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered(
    pool: ProcessPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin() -> None:
    """Ctrl-C ends a worker without a word, and so does the end of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
