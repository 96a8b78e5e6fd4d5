"""Many workers, each with an engine of its own: hands out items, collects results, survives workers that die.

`Executor` has the loop; what starts and feeds workers is a subclass: `processes.ProcessExecutor` on this host,
`ray_executor.RayExecutor` on a cluster. Only the caller, one process, writes the ledger.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from csm_cli.batch.dispatch import Dispatcher
from csm_cli.batch.items import BatchItem
from csm_cli.batch.results import ItemResult, failed_result
from csm_cli.batch.worker import (
    ItemFinished,
    ItemsReturned,
    Message,
    WorkerFailed,
    WorkerGone,
    WorkerLog,
    WorkerReady,
)
from csm_cli.errors import WorkerLost
from csm_cli.report import format_count

_POLL_SECONDS = 0.25  # after which a request to drain is noticed
_DEATHS_PER_WORKER = 3  # without a finished item between them; more end the run


@dataclass
class WorkerStart:
    """A worker's start, of the last process that had its number. Seconds from when the process was started.

    ready: until the model was loaded. first_file: until the first item was finished; None before.
    """

    began: float
    ready: float | None = None
    first_file: float | None = None


class Executor(ABC):
    """Generates items on `workers` workers. log: prints a line.

    ready: workers that have loaded the model; ready_since: when the first one had, by `time.perf_counter`. starts: by
    worker.

    Raises (in `results`):
        WorkerLost: workers die, and no item is finished between their deaths.
        KeyboardInterrupt: after `request_drain`, when the items in progress are finished.
        CsmError: what a worker raised outside of an item, such as OutputFailed.
    """

    def __init__(self, workers: int, log: Callable[[str], None]) -> None:
        self.workers, self.ready = workers, 0
        self.ready_since: float | None = None
        self.starts: dict[int, WorkerStart] = {}
        self._log = log
        self._slots: dict[int, int] = {}  # of workers that are ready
        self._deaths = 0  # since the last item was finished
        self._drain_requested = False
        self._logged: set[str] = set()

    @abstractmethod
    def start(self, worker: int) -> None:
        """Starts a worker, or another one in place of one that is gone."""

    @abstractmethod
    def send(self, worker: int, items: Sequence[BatchItem]) -> None:
        """Gives items to a worker; one that is gone ignores them."""

    @abstractmethod
    def recall(self, worker: int) -> None:
        """Asks a worker for the items it has not started; it answers with `ItemsReturned`."""

    @abstractmethod
    def messages(self, timeout: float) -> Iterator[tuple[int, Message]]:
        """What workers sent, after waiting for at most `timeout` seconds; `WorkerGone` is a worker's last message."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers at once."""

    def request_drain(self) -> None:
        """Ends the run when the items in progress are finished. May be called by a signal handler."""
        self._drain_requested = True

    def results(self, items: Iterator[BatchItem], total: int) -> Generator[ItemResult, None, None]:
        """Generates `total` items, in no order; workers end with the iterator."""
        dispatcher = Dispatcher(items, total, self.workers)
        draining = False
        try:
            for worker in range(self.workers):
                self._start(worker)
            while not dispatcher.is_done:
                for worker, message in self.messages(_POLL_SECONDS):
                    yield from self._handle(worker, message, dispatcher)
                    if worker in self._slots and (block := dispatcher.next_block(worker, self._slots[worker])):
                        self.send(worker, block)
                for worker, slots in self._slots.items():  # also those without a message: work may have come back
                    if block := dispatcher.next_block(worker, slots):
                        self.send(worker, block)
                if self._drain_requested and not draining:
                    draining = True
                    dispatcher.drain()
                    for worker in self._slots:
                        self.recall(worker)
                    self._log("finishing the items in progress; Ctrl-C again ends at once")
            if not dispatcher.is_empty:
                raise KeyboardInterrupt
        finally:
            self.close()

    def _start(self, worker: int) -> None:
        self.starts[worker] = WorkerStart(time.perf_counter())
        self.start(worker)

    def _handle(self, worker: int, message: Message, dispatcher: Dispatcher) -> Iterator[ItemResult]:
        match message:
            case WorkerReady(slots):
                self._slots[worker] = slots
                now = time.perf_counter()
                self.ready_since, self.starts[worker].ready = self.ready_since or now, now - self.starts[worker].began
            case ItemFinished(result) if dispatcher.finish(worker, result.id):
                self._deaths = 0
                start = self.starts[worker]
                start.first_file = start.first_file or time.perf_counter() - start.began
                yield result
            case ItemsReturned(item_ids):
                dispatcher.give_back(worker, item_ids)
            case WorkerLog(line) if line not in self._logged:
                self._logged.add(line)
                self._log(f"csm: {line}")
            case WorkerFailed(error):
                raise error
            case WorkerGone(reason, blamed):
                yield from self._replace(worker, reason, blamed, dispatcher)
        self.ready = len(self._slots)

    def _replace(self, worker: int, reason: str, blamed: bool, dispatcher: Dispatcher) -> Iterator[ItemResult]:
        before = dispatcher.in_progress
        failed = dispatcher.lose(worker, self._slots.pop(worker, 0), blamed)
        returned = before - dispatcher.in_progress - len(failed)
        self._deaths += 1
        again = f"; {format_count(returned, 'item')} handed out again" if returned else ""
        self._log(f"csm: worker {worker + 1} {reason}{again}")
        for item in failed:
            problem = f"the worker process {reason} each of three times that it generated this item"
            yield failed_result(item, WorkerLost(f"{problem}; shorten its text or context"))
            self._deaths = 0
        if self._deaths > _DEATHS_PER_WORKER * self.workers:
            hint = "run again with fewer --workers or a smaller --batch-size if memory is short"
            raise WorkerLost(f"{self._deaths} workers died and finished nothing, the last one {reason}; {hint}")
        self._start(worker)
