"""`csm bench workers`: a batch on many simulated workers, with the parent as it is: manifest, dispatcher, ledger.

Workers take the time of measured decode steps, on a clock that jumps to the next event; what the parent computes is
added to it. So 64 workers run on one core, and other work on the machine does not count.
"""

from __future__ import annotations

import heapq
import json
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from csm_cli.batch.estimate import CHARS_PER_SECOND, SPEEDS
from csm_cli.batch.executor import Executor
from csm_cli.batch.items import BatchItem
from csm_cli.batch.ledger import Ledger
from csm_cli.batch.results import ItemResult
from csm_cli.batch.worker import ItemFinished, ItemsReturned, Message, WorkerReady
from csm_cli.bench.timing import peak_memory_mb
from csm_cli.storage.outputs import open_outputs

_FRAME_SECONDS = 0.08
_CHARS_PER_FRAME = CHARS_PER_SECOND * _FRAME_SECONDS
_LEDGER_GROUPS = 50
_SENTENCE = "the old clock on the wall has stopped again today and nobody knows why it would not run"


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a decode step with the codec, of one row and of `rows` rows; in between on a line."""

    single: float
    rows: int
    full: float

    def seconds(self, rows: int) -> float:
        return self.single + (self.full - self.single) * (rows - 1) / (self.rows - 1)


STEP_TIMES = {  # docs/performance.md has the measurements
    "cpu": StepTimes(0.048 * _FRAME_SECONDS, 16, 16 * _FRAME_SECONDS / SPEEDS["cpu"].seconds_per_second),
    "h200": StepTimes(0.049 * _FRAME_SECONDS, 32, 32 * _FRAME_SECONDS / SPEEDS["h200"].seconds_per_second),
}


@dataclass(frozen=True)
class WorkerLoad:
    """How many workers, of so many slots each, generate how many lines. device: of `STEP_TIMES`."""

    workers: int
    slots: int
    lines: int
    device: str = "cpu"

    def step_seconds(self, rows: int) -> float:
        return STEP_TIMES[self.device].seconds(rows)


@dataclass
class _SimulatedWorker:
    """active: the frames that each item in a slot still needs. now: until when they are computed."""

    load: WorkerLoad
    queue: deque[BatchItem] = field(default_factory=deque)
    active: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    chars: dict[str, int] = field(default_factory=dict)

    def push(self, items: Sequence[BatchItem], now: float) -> None:
        self.advance(now)
        self.queue += items
        self._fill()

    def advance(self, now: float) -> None:
        """Computes until `now`, which is not after the next item's end."""
        frames = max(0.0, now - self.now) / self._step
        for name in self.active:
            self.active[name] -= frames
        self.now = max(now, self.now)

    def finished(self) -> list[tuple[str, int]]:
        """Takes out the items that have ended: ids and characters; others take their slots."""
        ended = [name for name, frames in self.active.items() if frames < 1e-6]
        for name in ended:
            del self.active[name]
        self._fill()
        return [(name, self.chars.pop(name)) for name in ended]

    @property
    def next_end(self) -> float | None:
        return self.now + min(self.active.values()) * self._step if self.active else None

    @property
    def _step(self) -> float:
        return self.load.step_seconds(max(1, len(self.active)))

    def _fill(self) -> None:
        while self.queue and len(self.active) < self.load.slots:
            item = self.queue.popleft()
            self.active[item.id], self.chars[item.id] = _frames(item.chars), item.chars


def _frames(chars: int) -> int:
    return max(1, round(chars / _CHARS_PER_FRAME))


class SimulatedExecutor(Executor):
    """Workers that only take time. now: seconds of the simulation; busy: those that the parent computed.

    check_seconds: of the parent before. Items and results are pickled and read as between processes.
    """

    def __init__(self, load: WorkerLoad) -> None:
        super().__init__(load.workers, lambda line: None)
        self.now = self.busy = 0.0
        self.frames = 0
        self._workers = [_SimulatedWorker(load) for _ in range(load.workers)]
        self._messages: deque[tuple[int, bytes]] = deque()
        self._ends: list[tuple[float, int]] = []  # a heap; those that are no longer a worker's next end are passed over
        self.check_seconds, self._mark = 0.0, time.thread_time()

    def start(self, worker: int) -> None:
        if not worker:
            self.check_seconds, self._mark = time.thread_time() - self._mark, time.thread_time()
        self._messages.append((worker, pickle.dumps(WorkerReady(self._workers[worker].load.slots))))

    def send(self, worker: int, items: Sequence[BatchItem]) -> None:
        data = pickle.dumps(items)
        self._charge()
        self._workers[worker].push(pickle.loads(data), self.now)
        self._schedule(worker)
        self._mark = time.thread_time()

    def recall(self, worker: int) -> None:
        queue = self._workers[worker].queue
        self._messages.append((worker, pickle.dumps(ItemsReturned([item.id for item in queue]))))
        queue.clear()

    def messages(self, timeout: float) -> Iterator[tuple[int, Message]]:
        self._charge()
        if not self._messages:
            self.now = max(self.now, min(self.now + timeout, self._ends[0][0] if self._ends else self.now + timeout))
        while self._ends and self._ends[0][0] <= self.now:
            end, worker = heapq.heappop(self._ends)
            simulated = self._workers[worker]
            if simulated.next_end != end:
                continue
            simulated.advance(end)
            for name, chars in simulated.finished():
                self.frames += _frames(chars)
                self._messages.append((worker, pickle.dumps(ItemFinished(_result(name, chars)))))
            self._schedule(worker)
        self._mark = time.thread_time()
        while self._messages:
            worker, data = self._messages.popleft()
            yield worker, pickle.loads(data)

    def close(self) -> None:
        self._charge()

    def _charge(self) -> None:
        used = time.thread_time() - self._mark
        self.now, self.busy = self.now + used, self.busy + used
        self._mark = time.thread_time()

    def _schedule(self, worker: int) -> None:
        if (end := self._workers[worker].next_end) is not None:
            heapq.heappush(self._ends, (end, worker))


def _result(name: str, chars: int) -> ItemResult:
    """As long as that of an item with one turn."""
    turn = {"number": 1, "speaker": "0", "text": "x" * chars, "start_s": 0.0, "end_s": 1.0, "stop": "eos", "seed": 1}
    turn |= {"takes": [{"seed": 1, "stop": "eos", "chosen": True, "fault": "", "frames": 50}], "lufs": -20.0}
    record = {"id": name, "status": "ok", "output": f"out/{name}.wav", "duration_s": 1.0, "stop": "eos", "seed": 1}
    record |= {"model": "bundled", "revision": None, "device": "cpu", "warnings": [], "turns": [turn]}
    return ItemResult(name, record, (), ("a line",), (), _frames(chars), ("eos",), chars)


def measure_workers(load: WorkerLoad, folder: Path, run: Callable[[Path, SimulatedExecutor], None]) -> dict[str, Any]:
    """Share of linear speed-up, and what the parent takes. run: generates a manifest on workers.

    Linear is as many workers as there are, all slots full at all times. Memory is that of this process.
    """
    manifest = folder / "lines.jsonl"
    drawn, words = random.Random(0), _SENTENCE.split()
    with manifest.open("w", encoding="utf-8") as file:
        for number in range(load.lines):
            text = " ".join(drawn.choices(words, k=drawn.randint(4, 36)))
            print(json.dumps({"id": f"l{number}", "speaker": number % 8, "text": text}), file=file)
    executor, cpu = SimulatedExecutor(load), torch.device("cpu")
    before = peak_memory_mb(cpu)
    run(manifest, executor)
    peak, rate = peak_memory_mb(cpu), load.lines / executor.now
    linear = executor.frames * load.step_seconds(load.slots) / (load.slots * load.workers)
    return {
        "bench": "workers",
        "workers": load.workers,
        "device": load.device,
        "batch": load.slots,
        "lines": load.lines,
        "audio_hours": executor.frames * _FRAME_SECONDS / 3600,
        "simulated_seconds": executor.now,
        "share_of_linear": linear / executor.now,
        "lines_per_second": rate,
        "parent_busy": executor.busy / executor.now,
        "parent_ms_per_line": 1e3 * executor.busy / load.lines,
        "check_ms_per_line": 1e3 * executor.check_seconds / load.lines,
        "ledger_busy": ledger_load(folder / "ledger", rate),
        "peak_mb": peak,
        "added_bytes_per_line": (peak - before) * 2**20 / load.lines,
    }


def ledger_load(folder: Path, rate: float) -> float:
    """Share of the time that the ledger's thread writes, where so many lines a second are finished elsewhere."""
    outputs = open_outputs(folder)
    size = max(1, round(rate * outputs.interval))
    seconds = 0.0
    with Ledger(outputs) as ledger:
        for group in range(_LEDGER_GROUPS):
            for number in range(size):
                ledger.append(_result(f"l{group}-{number}", 80).record)
            start = time.perf_counter()
            ledger.flush()
            seconds += time.perf_counter() - start
    return seconds / _LEDGER_GROUPS * rate / size
