"""Workers of a batch without a model: each item is a line of text in its file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from csm_cli.batch.items import BatchItem
from csm_cli.batch.results import ItemResult, WorkerPlace
from csm_cli.errors import CsmError
from csm_cli.storage.files import write_atomically
from csm_cli.storage.outputs import LocalOutputs, OutputStore
from csm_cli.types import Conversation, Turn

KILLS = "kills its worker"  # the text of an item that does
KILLS_ONCE = "kills one worker"


def make_items(folder: Path, count: int, **texts: str) -> list[BatchItem]:
    """Items named i0, i1, ...; `texts` by id."""
    names = [f"i{number}" for number in range(count)]
    return [
        BatchItem(Conversation((Turn(0, texts.get(name, "x" * (1 + n % 7))),), id=name), folder / name, name, "f")
        for n, name in enumerate(names)
    ]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_ended(pids: Iterable[int]) -> None:
    """These processes end within seconds."""
    deadline = time.monotonic() + 15
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(filter(is_running, pids))


@dataclass(frozen=True)
class StubTask:
    """seconds: for each item. error: raised when the model is loaded; exit_code: of the process instead."""

    seconds: float = 0.0
    slots: int = 2
    error: CsmError | None = None
    exit_code: int | None = None

    def open(self, place: WorkerPlace) -> StubEngine:
        if self.exit_code is not None:
            os._exit(self.exit_code)
        if self.error:
            raise self.error
        return StubEngine(self.slots, self.seconds)


@dataclass
class StubEngine:
    slots: int
    seconds: float
    texts: list[str] = field(default_factory=list)
    outputs: OutputStore = field(default_factory=lambda: LocalOutputs(Path()))

    def results(self, items: Iterator[BatchItem]) -> Generator[ItemResult, None, None]:
        while (item := next(items, None)) is not None:
            text = item.conversation.turns[0].text
            trace = item.path.with_suffix(".killed")
            if text == KILLS or (text == KILLS_ONCE and not trace.exists()):
                trace.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            write_atomically(item.path, text.encode(), flush=False)
            yield ItemResult(
                item.id, {"id": item.id, "status": "ok", "pid": os.getpid()}, (item.path,), chars=item.chars
            )
