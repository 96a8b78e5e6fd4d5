"""Which items of a batch this run speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from csm_cli.batch.ledger import Entry
from csm_cli.batch.outputs import Item
from csm_cli.errors import UsageError

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # as `audio.write_atomically` names what is not whole yet


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
        names = ("ID", "MIN", "COUNT", "STEP")
        try:
            task, first, count, step = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in names)
        except (KeyError, ValueError) as error:
            raise UsageError("--shard slurm is for jobs of a Slurm array (sbatch --array=1-8); this is none") from error
        return cls((task - first) // step + 1, count)

    def of(self, items: Sequence[Item]) -> list[Item]:
        return list(items[self.index - 1 :: self.count])


@dataclass(frozen=True)
class Choice:
    """force: also what is done; failed: only what failed before; limit: at most so many."""

    force: bool = False
    failed: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """items: what is spoken now; done: how many are, unchanged; left: how many there are beyond the limit."""

    items: tuple[Item, ...]
    done: int
    left: int


def choose(items: Sequence[Item], entries: Mapping[str, Entry], choice: Choice) -> Plan:
    """Done is what came out well, of the same fingerprint, and is still there; all else is to be spoken."""
    fresh = [item for item in items if choice.force or not _done(item, entries.get(item.id))]
    wanted = [item for item in fresh if not choice.failed or _failed(entries.get(item.id))]
    taken = tuple(islice(wanted, choice.limit))
    return Plan(taken, len(items) - len(fresh), len(wanted) - len(taken))


def sweep(items: Sequence[Item]) -> None:
    """Removes files that a killed run had begun, from the folders where `items` will be written."""
    for folder in {item.path.parent for item in items}:
        for path in folder.glob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _done(item: Item, entry: Entry | None) -> bool:
    if entry is None or entry.status != "ok" or entry.fingerprint != item.fingerprint:
        return False
    return item.path.exists()


def _failed(entry: Entry | None) -> bool:
    return entry is not None and entry.status == "failed"
