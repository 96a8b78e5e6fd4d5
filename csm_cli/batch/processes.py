"""Workers as processes of this host, one for each GPU, or several that share the cores of the CPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.resource_tracker import ensure_running

from csm_cli.batch.executor import Executor
from csm_cli.batch.items import BatchItem
from csm_cli.batch.results import WorkerPlace, WorkerTask
from csm_cli.batch.worker import ItemsReturned, Message, WorkerFailed, WorkerGone, WorkQueue, portable_error, run_worker

_END_SECONDS = 5.0  # a process that takes longer to end is killed


class ProcessExecutor(Executor):
    """One process for each of `places`. A process ends when this one does, whatever ends it."""

    def __init__(self, task: WorkerTask, places: Sequence[WorkerPlace], log: Callable[[str], None]) -> None:
        super().__init__(len(places), log)
        self._task, self._places = task, places
        self._context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}

    def start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        arguments = theirs, self._task, self._places[worker]
        process = self._context.Process(target=_process, args=arguments, name=f"csm worker {worker + 1}", daemon=True)
        with theirs, _interrupts_blocked():
            process.start()
        self._processes[worker] = process, ours

    def send(self, worker: int, items: Sequence[BatchItem]) -> None:
        with suppress(OSError):  # it died; `messages` tells
            self._processes[worker][1].send(list(items))

    def recall(self, worker: int) -> None:
        with suppress(OSError):
            self._processes[worker][1].send(None)

    def messages(self, timeout: float) -> Iterator[tuple[int, Message]]:
        workers = {connection: worker for worker, (_, connection) in self._processes.items()}
        for connection in wait(list(workers), timeout):
            assert isinstance(connection, Connection)
            worker = workers[connection]
            try:
                yield worker, connection.recv()
                while connection.poll():
                    yield worker, connection.recv()
            except (EOFError, OSError):  # the system closed its end
                yield worker, WorkerGone(self._end(worker))

    def _end(self, worker: int) -> str:
        """How a process ended that closed its connection."""
        process, connection = self._processes.pop(worker)
        connection.close()
        process.join(_END_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode or 0
        process.close()
        if code >= 0:
            return f"ended with exit code {code}"
        memory = ", possibly for lack of memory" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{memory}"

    def close(self) -> None:
        for process, _ in self._processes.values():
            process.terminate()
        for process, connection in self._processes.values():
            process.join(_END_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
            connection.close()
        self._processes.clear()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started in the block never get Ctrl-C, which a terminal sends to all: this process drains them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    ensure_running()  # starting it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _process(connection: Connection, task: WorkerTask, place: WorkerPlace) -> None:
    """A worker process. A thread reads the connection at all times, so that the parent never waits in `send`."""
    queue, lock = WorkQueue(), threading.Lock()

    def send(message: Message) -> None:
        with lock:
            try:
                connection.send(message)
            except OSError:
                os._exit(1)  # the parent is gone

    def read() -> None:
        while True:
            try:
                items = connection.recv()
            except (EOFError, OSError):
                os._exit(1)
            except BaseException as problem:
                send(WorkerFailed(portable_error(problem)))
                return
            if items is None:
                send(ItemsReturned(queue.clear()))
            else:
                queue.push(items)

    threading.Thread(target=read, name="connection", daemon=True).start()
    run_worker(task, place, queue, send)
