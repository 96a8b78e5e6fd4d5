"""What generating an item gives, and what can generate items: an engine in this process, or an executor of many."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from csm_cli.batch.items import BatchItem
from csm_cli.errors import CsmError
from csm_cli.storage.outputs import OutputStore


@dataclass(frozen=True)
class ItemResult:
    """An item that is finished, ok or failed; can be sent between processes.

    id: of the item. record: for the ledger, but for the item's file and fingerprint. files: that are written, but not
    published yet. lines: one for each turn. warnings: to print, without the item's id. frames, stops: of the turns
    generated. chars: of the item.
    """

    id: str
    record: dict[str, Any]
    files: tuple[Path, ...] = ()
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    frames: int = 0
    stops: tuple[str, ...] = ()
    chars: int = 0

    @property
    def ok(self) -> bool:
        return bool(self.record["status"] == "ok")


def failed_result(item: BatchItem, error: CsmError, seeds: Sequence[int] = ()) -> ItemResult:
    """The result of an item that failed. seeds: of the takes that were tried."""
    turns = [{"speaker": turn.label, "text": turn.text} for turn in item.conversation.turns]
    record: dict[str, Any] = {"id": item.id, "status": "failed", "output": None, "error": str(error)}
    record |= {"error_class": error.kind, "seeds_tried": list(seeds), "turns": turns} | extra_columns(item)
    return ItemResult(item.id, record, warnings=(str(error),), chars=item.chars)


def extra_columns(item: BatchItem) -> dict[str, Any]:
    """The other columns of an item's row, as a record has them."""
    return {"extra": dict(item.conversation.extra)} if item.conversation.extra else {}


class ItemEngine(Protocol):
    """Generates items. slots: how many at once; outputs: where their files belong."""

    slots: int
    outputs: OutputStore

    def results(self, items: Iterator[BatchItem]) -> Generator[ItemResult, None, None]:
        """Reads items as slots become free, and again where `items` had ended for a while; yields finished ones."""


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs: the name of its device, None for the job's own; threads on a CPU; workers on that device."""

    device: str | None = None
    threads: int = 1
    sharing: int = 1


class WorkerTask(Protocol):
    """What a worker does; can be sent between processes."""

    def open(self, place: WorkerPlace) -> ItemEngine:
        """Loads the model. Raises CsmError where that is not possible."""
