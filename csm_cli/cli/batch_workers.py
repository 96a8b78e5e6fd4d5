"""`csm batch --workers`: how many workers, on which devices, and the run of a batch on them."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.batch.results import ItemResult, WorkerPlace, failed_result
from csm_cli.cli.batch_engine import Loader, SynthesisTask
from csm_cli.cli.console import log_line
from csm_cli.cli.progress import WorkerMeter
from csm_cli.cli.summary import summarize
from csm_cli.cli.synthesis import SynthesisJob, pick_device_and_dtype
from csm_cli.cli.voice_notes import note_unknown_voices
from csm_cli.errors import UsageError
from csm_cli.report import format_count
from csm_cli.storage.outputs import OutputStore
from csm_cli.storage.remote import is_fetched

if TYPE_CHECKING:
    import torch

    from csm_cli.batch.executor import Executor
    from csm_cli.batch.items import BatchItem, Counts
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.types import Conversation

_MAX_WORKERS = 1024
_PANEL = "Workers"
_MAX_TIMES_SHOWN = 4


@dataclass(frozen=True)
class WorkerOptions:
    """How many processes generate, and where."""

    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="auto|N",
            help="Processes with a model each; auto: one for each GPU, or for each core.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="processes|ray",
            help="Workers on this machine, or on all hosts of a Ray cluster.",
            rich_help_panel=_PANEL,
        ),
    ] = "processes"
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The cluster's head; by default the cluster that this machine belongs to.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    cpus_per_worker: Annotated[
        int,
        typer.Option(
            "--cpus-per-worker", metavar="N", min=1, help="Cores of each worker on Ray.", rich_help_panel=_PANEL
        ),
    ] = 1

    @property
    def chosen(self) -> bool:
        """Whether workers generate; else this process does."""
        return self.workers is not None or self.executor == "ray"

    def check(self) -> None:
        """Raises UsageError for impossible options or a missing library, before any work is done."""
        _ = self.count
        if self.executor not in ("processes", "ray"):
            raise UsageError(f"--executor takes processes or ray, not {self.executor!r}")
        if self.executor == "ray" and importlib.util.find_spec("ray") is None:
            raise UsageError('--executor ray needs Ray; pip install "csm-cli[ray]" on all hosts')
        if self.executor != "ray" and (self.ray_address or self.cpus_per_worker > 1):
            raise UsageError("--ray-address and --cpus-per-worker are for --executor ray")

    def checked(self, items: Iterable[BatchItem]) -> Iterator[BatchItem]:
        """Passes items on. Raises UsageError for a recording that workers on other hosts do not find."""
        for item in items:
            turns = (*item.conversation.context, *item.conversation.turns) if self.executor == "ray" else ()
            if any(turn.recording and is_fetched(turn.recording.path) for turn in turns):
                hint = "put manifest and recordings into a folder that all hosts share"
                raise UsageError(
                    f'"{item.id}" has a recording by URL, which --executor ray cannot hand to other hosts; {hint}'
                )
            yield item

    @property
    def count(self) -> int | None:
        """None for auto. Raises UsageError for anything but auto and a number in range."""
        if self.workers is None or self.workers == "auto":
            return None
        count = int(self.workers) if self.workers.isdecimal() and len(self.workers) < 5 else 0
        if not 1 <= count <= _MAX_WORKERS:
            raise UsageError(f"--workers takes auto or a whole number from 1 to {_MAX_WORKERS}, not {self.workers!r}")
        return count


def make_executor(options: WorkerOptions, batch: BatchSetup, items: int) -> Executor:
    """Workers for so many items: processes of this host, or actors of a Ray cluster.

    Raises:
        UsageError: there are fewer GPUs than workers, or no Ray cluster.
    """
    log = (lambda line: None) if batch.job.output_options.quiet else log_line
    if options.executor == "ray":
        from csm_cli.batch.ray_executor import RayCluster, RayExecutor, describe

        cluster = RayCluster.connect(options.ray_address, options.cpus_per_worker, batch.job.speech.device)
        workers = min(options.count or cluster.workers(), items)
        log(f"starting {describe(cluster, workers)} ...")
        return RayExecutor(_task(batch, items, workers), cluster, workers, batch.outputs, log_line)
    from csm_cli.batch.processes import ProcessExecutor

    places = worker_places(options.count, batch.job, batch.checkpoint)[:items]
    threads = f" ({format_count(places[0].threads, 'thread')} each)" if places[0].device == "cpu" else ""
    log(f"starting {format_count(len(places), 'worker')}{threads} ...")
    return ProcessExecutor(_task(batch, items, len(places)), places, log_line)


def _task(batch: BatchSetup, items: int, workers: int) -> SynthesisTask:
    job = replace(batch.job, recognizer=None, slots=min(batch.job.slots, -(-items // workers)))
    checkpoint = batch.checkpoint
    return SynthesisTask(job, checkpoint.revision, checkpoint.fingerprint, batch.outputs, batch.load, batch.save_codes)


def worker_places(count: int | None, job: SynthesisJob, checkpoint: Checkpoint) -> list[WorkerPlace]:
    """One place for each worker. count: None for every GPU, or as many as cores and memory allow.

    Raises:
        UsageError: there are fewer GPUs.
    """
    import torch

    device, dtype = pick_device_and_dtype(job.speech)
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = count or min(cores, _workers_in_memory(device, dtype, checkpoint))
        threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, cores // workers)
        return [WorkerPlace("cpu", threads, workers)] * workers
    named = device.index is not None or device.type != "cuda"
    devices = [str(device)] if named else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if count and count > len(devices):
        found = f"{format_count(len(devices), 'device')} ({', '.join(devices)})"
        raise UsageError(f"--workers {count}: one worker has one GPU, and --device {job.speech.device} is {found}")
    return [WorkerPlace(name, torch.get_num_threads()) for name in devices[:count]]


def _workers_in_memory(device: torch.device, dtype: torch.dtype, checkpoint: Checkpoint) -> int:
    from csm_cli.engine.memory_estimate import MEMORY_SHARE, estimate_memory, weight_bytes

    estimate = estimate_memory(checkpoint.config, device, dtype)
    if estimate.free is None:
        return _MAX_WORKERS
    return max(1, int(MEMORY_SHARE * estimate.free // (weight_bytes(checkpoint.config, dtype) + estimate.slot_bytes)))


@dataclass(frozen=True)
class BatchSetup:
    """What all items of a batch share. load: makes a synthesizer; for workers, a function of a module."""

    job: SynthesisJob
    checkpoint: Checkpoint
    outputs: OutputStore
    load: Loader
    save_codes: bool = False


class WorkerPool:
    """The workers of a batch, as its run sees them; see `ItemEngine`."""

    def __init__(self, executor: Executor, batch: BatchSetup, counts: Counts) -> None:
        from csm_cli.models.mimi.config import codec_config

        self._job, self._checkpoint, self._total = batch.job, batch.checkpoint, counts.selected
        self._executor = executor
        rate = codec_config(batch.checkpoint.codec_config).frame_rate
        self.meter = WorkerMeter(rate, counts.chars, counts.total, self._executor)
        self.meter.finished_items = counts.done

    def results(self, items: Iterator[BatchItem]) -> Generator[ItemResult, None, None]:
        failed: deque[ItemResult] = deque()  # items that cannot be generated

        def readable() -> Iterator[BatchItem]:
            for item in items if self._job.output_options.quiet else _with_notes(items, self._checkpoint):
                if item.error:
                    failed.append(failed_result(item, item.error))
                else:
                    yield item

        results = self._executor.results(readable(), self._total)
        with closing(results), _drained_by_interrupt(self._executor):
            for result in self.meter.watch(results):
                yield result
                while failed:
                    yield failed.popleft()
            yield from failed

    def summary(self) -> str:
        device = f"{format_count(self._executor.workers, 'worker')}"
        return f"{summarize(self.meter, self._checkpoint.name, device)}{self._start_times()}"

    def _start_times(self) -> str:
        """When each worker had loaded the model and finished its first item; of many workers the first and the last."""
        starts = self._executor.starts.values()
        parts = []
        for what, times in (
            ("model loaded", [each.ready for each in starts]),
            ("first file", [each.first_file for each in starts]),
        ):
            known = [f"{seconds:.1f}" for seconds in sorted(each for each in times if each is not None)]
            if known:
                shown = ", ".join(known) if len(known) <= _MAX_TIMES_SHOWN else f"{known[0]} to {known[-1]}"
                parts.append(f"{what} after {shown} s")
        return f"; {', '.join(parts)}" if parts else ""

    def hint(self) -> str:
        return ""


def _with_notes(items: Iterator[BatchItem], checkpoint: Checkpoint) -> Iterator[BatchItem]:
    """Passes items through; says once what the bundled voice does not know."""
    current: list[BatchItem] = []

    def conversations() -> Iterator[Conversation]:
        for item in items:
            current[:] = [item]
            yield item.conversation

    for _ in note_unknown_voices(conversations(), checkpoint):
        yield current[0]


@contextmanager
def _drained_by_interrupt(executor: Executor) -> Iterator[None]:
    """The first Ctrl-C lets the executor finish what is in progress, a second one ends the run at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def drain(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        executor.request_drain()

    before = signal.signal(signal.SIGINT, drain)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
