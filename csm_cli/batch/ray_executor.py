"""Workers as Ray actors, on all hosts of a cluster. The only module that imports Ray.

An actor has one method, `exchange`, of which one call is open at a time: it brings items and takes messages along. Both
are numbered, and repeated until the other side has confirmed them: a call that is lost with the network loses nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from csm_cli import __version__
from csm_cli.batch.executor import Executor
from csm_cli.batch.items import BatchItem
from csm_cli.batch.results import WorkerPlace, WorkerTask
from csm_cli.batch.worker import ItemsReturned, Message, WorkerFailed, WorkerGone, WorkQueue, run_worker
from csm_cli.errors import CsmError, OutputRefused, UsageError
from csm_cli.report import format_count
from csm_cli.storage.files import write_atomically
from csm_cli.storage.outputs import LocalOutputs, OutputStore

_EXCHANGE_SECONDS = 0.5  # after which an exchange without messages returns
_RETRY_SECONDS = 1.0  # between exchanges with a worker that cannot be reached
_SHARED_FOLDER_SECONDS = 30.0  # until a new file is seen on all hosts
_MAX_MESSAGES = 256  # of one exchange
_PROBE = ".csm-probe-"

Command = tuple[int, list[BatchItem] | None]  # its number; None returns the items that are not started


@dataclass(frozen=True)
class ExchangeReply:
    """What an exchange returns. received: number of the last command; messages: those not confirmed, numbered."""

    received: int
    messages: list[tuple[int, Message]]
    host: str
    node: str


@dataclass(frozen=True)
class SharedFolder:
    """A folder that all hosts must see. working: the folder that relative paths are below. probe: a new file in it."""

    working: str
    probe: str

    def check(self) -> None:
        """Raises OutputRefused on a host that does not see the probe."""
        host = socket.gethostname()
        try:
            os.chdir(self.working)
        except OSError as error:
            raise OutputRefused(f"{host} has no folder {self.working}; run in a folder that all hosts share") from error
        deadline = time.monotonic() + _SHARED_FOLDER_SECONDS
        while not Path(self.probe).exists():
            if time.monotonic() > deadline:
                folder = Path(self.probe).parent
                raise OutputRefused(f"{host} does not share the folder {folder}; name a shared one with -o")
            time.sleep(0.1)


class RayWorker:
    """The actor: runs a worker in a thread and holds its messages until the executor has confirmed them."""

    def __init__(self, task: WorkerTask, place: WorkerPlace, shared: SharedFolder, version: str) -> None:
        self._queue = WorkQueue()
        self._messages: deque[tuple[int, Message]] = deque()
        self._changed = threading.Condition()
        self._sent = self._received = 0
        self._node = ray.get_runtime_context().get_node_id()
        arguments = task, place, shared, version
        threading.Thread(target=self._run, args=arguments, daemon=True).start()

    def exchange(self, confirmed: int, commands: list[Command]) -> ExchangeReply:
        """Carries out commands that are new; waits for messages after number `confirmed`."""
        for number, items in commands:
            if number <= self._received:
                continue
            self._received = number
            if items is None:
                self._send(ItemsReturned(self._queue.clear()))
            else:
                self._queue.push(items)
        with self._changed:
            while self._messages and self._messages[0][0] <= confirmed:
                self._messages.popleft()
            self._changed.wait_for(lambda: self._messages, _EXCHANGE_SECONDS)
            messages = [self._messages[index] for index in range(min(len(self._messages), _MAX_MESSAGES))]
        return ExchangeReply(self._received, messages, socket.gethostname(), self._node)

    def _send(self, message: Message) -> None:
        with self._changed:
            self._sent += 1
            self._messages.append((self._sent, message))
            self._changed.notify()

    def _run(self, task: WorkerTask, place: WorkerPlace, shared: SharedFolder, version: str) -> None:
        try:
            if version != __version__:
                raise UsageError(f"{socket.gethostname()} has csm {__version__}, not {version}; install the same one")
            shared.check()
        except CsmError as error:
            self._send(WorkerFailed(error))
            return
        run_worker(task, place, self._queue, self._send)


@dataclass
class _Actor:
    """An actor as the executor sees it. confirmed: the last message that was handled."""

    handle: Any
    commands: list[Command] = field(default_factory=list)  # not confirmed
    sent: int = 0
    confirmed: int = 0
    retry_at: float = 0.0
    host: str = "a host"
    node: str = ""


@dataclass(frozen=True)
class RayCluster:
    """A cluster to run on. address: of its head, None for the cluster that this host belongs to.

    cpus: of each worker; gpus: whether each has a GPU.
    """

    address: str | None = None
    cpus: int = 1
    gpus: bool = False

    @classmethod
    def connect(cls, address: str | None, cpus: int, device: str) -> RayCluster:
        """Connects this process. device: as in settings; `auto` means GPUs where the cluster has some.

        Raises:
            UsageError: there is no such cluster, or it has no GPU for `cuda`.
        """
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            hint = "start one with `ray start --head`, and `ray start --address=HOST:6379` on the other hosts"
            raise UsageError(f"no Ray cluster at {address or 'this host'} ({_first_line(error)}); {hint}") from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise UsageError(
                "--device cuda: the Ray cluster has no GPU; start its nodes with --num-gpus, or drop --device"
            )
        return cls(address, cpus, bool(gpus) and device != "cpu")

    def workers(self) -> int:
        """As many as the cluster has GPUs, or CPUs, for."""
        resources = ray.cluster_resources()
        return max(1, int(resources.get("GPU", 0) if self.gpus else resources.get("CPU", 0) // self.cpus))

    def place(self, workers: int) -> WorkerPlace:
        nodes = sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
        sharing = 1 if self.gpus else -(-workers // max(nodes, 1))
        return WorkerPlace("cuda" if self.gpus else "cpu", self.cpus, sharing)


class RayExecutor(Executor):
    """One actor for each worker. Ray ends the actors of a driver that dies.

    outputs: all hosts must see their folder, if they are not in an object store.
    """

    def __init__(
        self, task: WorkerTask, cluster: RayCluster, workers: int, outputs: OutputStore, log: Callable[[str], None]
    ) -> None:
        super().__init__(workers, log)
        self._task, self._cluster, self._place = task, cluster, cluster.place(workers)
        folder = outputs.folder if isinstance(outputs, LocalOutputs) else Path.cwd()
        if isinstance(outputs, LocalOutputs):
            for stale in folder.glob(f"{_PROBE}*"):  # of a driver that was killed: no other one runs in this folder
                stale.unlink(missing_ok=True)
        probe = folder / f"{_PROBE}{secrets.token_hex(8)}"
        write_atomically(probe, b"")
        self._shared = SharedFolder(os.getcwd(), os.path.abspath(probe))  # noqa: PTH109, PTH100 (links stay)
        self._actors: dict[int, _Actor] = {}
        self._open: dict[Any, int] = {}  # exchanges: reference to worker
        self._unreachable: set[int] = set()

    def start(self, worker: int) -> None:
        resources = {"num_cpus": self._cluster.cpus, "num_gpus": 1 if self._cluster.gpus else 0}
        remote = ray.remote(**resources, max_restarts=0)(RayWorker)
        self._actors[worker] = _Actor(remote.remote(self._task, self._place, self._shared, __version__))
        self._exchange(worker)

    def send(self, worker: int, items: Sequence[BatchItem]) -> None:
        self._command(worker, list(items))

    def recall(self, worker: int) -> None:
        self._command(worker, None)

    def _command(self, worker: int, items: list[BatchItem] | None) -> None:
        if actor := self._actors.get(worker):
            actor.sent += 1
            actor.commands.append((actor.sent, items))

    def _exchange(self, worker: int) -> None:
        actor = self._actors[worker]
        self._open[actor.handle.exchange.remote(actor.confirmed, actor.commands)] = worker

    def messages(self, timeout: float) -> Iterator[tuple[int, Message]]:
        now = time.monotonic()
        for worker in [each for each in self._unreachable if self._actors[each].retry_at <= now]:
            self._unreachable.discard(worker)
            self._exchange(worker)
        if not self._open:
            time.sleep(timeout)
            return
        ray.wait(list(self._open), timeout=timeout)
        done, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
        for reference in done:
            worker = self._open.pop(reference)
            actor = self._actors[worker]
            try:
                reply: ExchangeReply = ray.get(reference)
            except ActorUnavailableError:
                if actor.retry_at == 0.0:
                    self._log(f"csm: worker {worker + 1} on {actor.host} cannot be reached; trying again")
                actor.retry_at = time.monotonic() + _RETRY_SECONDS
                self._unreachable.add(worker)
                continue
            except RayError as error:
                yield worker, self._gone(worker, error)
                continue
            actor.host, actor.node, actor.retry_at = reply.host, reply.node, 0.0
            actor.commands = [each for each in actor.commands if each[0] > reply.received]
            for number, message in reply.messages:
                if number > actor.confirmed:
                    actor.confirmed = number
                    yield worker, message
            self._exchange(worker)

    def _gone(self, worker: int, error: RayError) -> WorkerGone:
        actor = self._actors.pop(worker)
        with suppress(RayError):
            ray.kill(actor.handle)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        preempted = isinstance(error, RayActorError) and bool(error.preempted)
        if preempted or (actor.node and actor.node not in alive):
            return WorkerGone(f"on {actor.host} was lost with its node", blamed=False)
        return WorkerGone(f"on {actor.host} died ({_first_line(error)})")

    def close(self) -> None:
        Path(self._shared.probe).unlink(missing_ok=True)
        with suppress(RayError):
            for actor in self._actors.values():
                ray.kill(actor.handle)
        self._actors.clear()
        self._open.clear()
        ray.shutdown()


def describe(cluster: RayCluster, workers: int) -> str:
    """Such as `8 workers on Ray, one GPU each`."""
    kind = "one GPU each" if cluster.gpus else f"{format_count(cluster.cpus, 'core')} each"
    return f"{format_count(workers, 'worker')} on Ray, {kind}"


def _first_line(error: BaseException) -> str:
    """The sentence of a Ray error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [
        line for line in lines if line.startswith(("The actor is dead because", "Worker unexpectedly", "The node"))
    ]
    return (causes or lines or [type(error).__name__])[0].partition(". ")[0][:200].rstrip(".")
