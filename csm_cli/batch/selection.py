"""Which items of a batch this run speaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from csm_cli.batch.ledger import LedgerEntry
from csm_cli.batch.outputs import BatchItem
from csm_cli.errors import UsageError
from csm_cli.storage.files import MAX_CACHED_FOLDERS, remove_temp_files
from csm_cli.types import Conversation


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every count-th line."""

    index: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """From "2/8", or from Slurm's array variables for "slurm".

        Raises:
            UsageError: neither.
        """
        if text == "slurm":
            return cls._slurm(environment)
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        index, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= index <= count:
            raise UsageError(f"--shard takes i/n from 1/n to n/n, or slurm, not {text!r}")
        return cls(index, count)

    @classmethod
    def _slurm(cls, environment: Mapping[str, str]) -> Shard:
        names = ("ID", "MIN", "MAX", "COUNT", "STEP")
        try:
            task, first, last, count, step = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
        except (KeyError, ValueError) as error:
            raise UsageError("--shard slurm is for jobs of a Slurm array (sbatch --array=1-8); this is none") from error
        if (last - first) // step + 1 != count:
            raise UsageError("--shard slurm wants an array without holes, such as --array=1-8; else use --shard i/n")
        return cls((task - first) // step + 1, count)

    def of(self, items: Iterable[BatchItem]) -> Iterator[BatchItem]:
        return islice(items, self.index - 1, None, self.count)


@dataclass(frozen=True)
class Selection:
    """force: also what is done; failed: only what failed before; limit: at most so many."""

    force: bool = False
    failed: bool = False
    limit: int | None = None


@dataclass
class Counts:
    """How the items that came by so far were chosen.

    done: unchanged since they came out well. left: the limit was reached, and there are more. skipped: characters of
    those not taken.
    """

    taken: int = 0
    done: int = 0
    left: bool = False
    skipped: int = 0


def select_items(
    items: Iterable[BatchItem], entries: Mapping[str, LedgerEntry], choice: Selection, tally: Counts
) -> Iterator[BatchItem]:
    """What is to be spoken, as it comes by.

    Done is what came out well, of the same fingerprint, and is still there.
    """
    for item in items:
        entry = entries.get(item.id)
        if not choice.force and _done(item, entry):
            tally.done += 1
        elif choice.failed and not _failed(entry):
            pass
        elif tally.taken == choice.limit:
            tally.left = True
            return
        else:
            tally.taken += 1
            yield item
            continue
        tally.skipped += conversation_chars(item.conversation)


def remove_stale_temp_files() -> Callable[[Path], None]:
    """Removes files that a killed run had begun, from each folder before it is first written to."""
    return lru_cache(MAX_CACHED_FOLDERS)(remove_temp_files)


def conversation_chars(conversation: Conversation) -> int:
    """Of all turns that are to be spoken."""
    return sum(len(turn.text) for turn in conversation.turns if not turn.recording)


def _done(item: BatchItem, entry: LedgerEntry | None) -> bool:
    if entry is None or entry.status != "ok" or entry.fingerprint != item.fingerprint:
        return False
    return item.path.exists()


def _failed(entry: LedgerEntry | None) -> bool:
    return entry is not None and entry.status == "failed"
