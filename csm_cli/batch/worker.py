"""The worker's side of an executor: blocks of items come in, messages go out."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from csm_cli.batch.items import BatchItem
from csm_cli.batch.results import ItemResult, WorkerPlace, WorkerTask
from csm_cli.errors import CsmError, failure_of


@dataclass(frozen=True)
class WorkerReady:
    """The model is loaded. slots: items decoded at once."""

    slots: int


@dataclass(frozen=True)
class ItemFinished:
    """Its files are published."""

    result: ItemResult


@dataclass(frozen=True)
class ItemsReturned:
    """Items that were not started when the worker was asked to finish."""

    item_ids: list[str]


@dataclass(frozen=True)
class WorkerLog:
    """A line of the worker's log."""

    line: str


@dataclass(frozen=True)
class WorkerFailed:
    """An error that ends the run, such as a full disk or a device that is missing."""

    error: CsmError


@dataclass(frozen=True)
class WorkerGone:
    """The worker died. blamed: its items may be the cause; not so where its machine was lost."""

    reason: str
    blamed: bool = True


Message = WorkerReady | ItemFinished | ItemsReturned | WorkerLog | WorkerFailed | WorkerGone


class WorkQueue:
    """The items that a worker has not started yet. As an iterator it ends where there is none at the moment, and goes
    on when there are more; any thread may add to it."""

    def __init__(self) -> None:
        self._items: deque[BatchItem] = deque()
        self._changed = threading.Condition()

    def push(self, items: Sequence[BatchItem]) -> None:
        with self._changed:
            self._items += items
            self._changed.notify()

    def clear(self) -> list[str]:
        """Removes all items; returns their ids."""
        with self._changed:
            ids = [item.id for item in self._items]
            self._items.clear()
            return ids

    def wait(self) -> None:
        """Waits for an item."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)

    def __iter__(self) -> WorkQueue:
        return self

    def __next__(self) -> BatchItem:
        with self._changed:
            if not self._items:
                raise StopIteration
            return self._items.popleft()


def run_worker(task: WorkerTask, place: WorkerPlace, queue: WorkQueue, send: Callable[[Message], None]) -> None:
    """Loads the model once and generates the queue's items until the process ends.

    send: may be called by any thread.
    """
    os.environ["OMP_NUM_THREADS"] = str(place.threads)  # read when torch is imported
    _forward_log(send)

    def deliver(result: ItemResult) -> None:
        try:
            for file in result.files:
                engine.outputs.publish(file)
            send(ItemFinished(replace(result, files=())))
        except BaseException as problem:
            send(WorkerFailed(portable_error(problem)))

    try:
        engine = task.open(place)
        send(WorkerReady(engine.slots))
        with ThreadPoolExecutor(engine.outputs.threads) as pool:  # the decode loop does not wait for the disk
            while True:
                queue.wait()
                for result in engine.results(queue):
                    pool.submit(deliver, result)
    except BaseException as problem:
        send(WorkerFailed(portable_error(problem)))


def portable_error(problem: BaseException) -> CsmError:
    """An exception as an error of this program that another process can read."""
    error = failure_of(problem, isolate_stops=True)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class whose constructor takes other arguments
        return CsmError(str(error))
    return error


def _forward_log(send: Callable[[Message], None]) -> None:
    """The package's log goes to the executor, which prints a line that several workers have once."""

    class ForwardingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(WorkerLog(record.getMessage()))

    log = logging.getLogger("csm_cli")
    log.handlers, log.propagate = [ForwardingHandler()], False
    warnings.simplefilter("ignore")
