"""Work spread over processes: results in order, and a killed worker is reported."""

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
    """`work` of each item in order; in this process where there is one worker.

    Raises:
        CsmError: a worker was killed. Whatever `work` raises.
    """
    if workers == 1:
        yield from map(work, items)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        hint = "run again to resume, with fewer --jobs if memory is short"
        raise CsmError(f"a worker process was killed, possibly for lack of memory; {hint}") from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()  # the next run repeats its item
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C ends a worker silently, and so does the end of its parent process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
