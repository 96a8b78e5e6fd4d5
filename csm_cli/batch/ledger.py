"""results.jsonl: one object per finished item, only ever appended to; the last one of an id counts.

An item counts as done when its line is on the disk, and its line is written when its sound is there. Lines go to the
disk in groups, in a thread of their own: while one group is on its way the next gathers, so that no item waits for the
disk. A process that is killed loses the lines of the last moment, never half of one: those items are spoken again, and
sound the same.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from csm_cli.batch.group_commit import GroupCommitWriter, PendingRecord
from csm_cli.errors import InputError, OutputFailed, OutputRefused
from csm_cli.storage.files import exclusive_lock

LEDGER = "results.jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What is remembered of an item: how it ended ("ok", "failed"), and of what it was made."""

    status: str
    fingerprint: str


class Ledger:
    """The ledger of a folder, held by one process until it is closed, or until the process dies in whatever way.

    entries: by id, what the file says at opening.

    Raises:
        UsageError: another process holds it.
        OutputRefused: the folder or the file cannot be made or written to.
        InputError: the file is somebody else's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        with ExitStack() as held:
            held.enter_context(exclusive_lock(folder, f"{LEDGER}.lock"))
            self._file = held.enter_context(_opened(self.path))
            self.entries = {str(record["id"]): _entry(record) for record in self.records()}
            self._mend()
            self._held = held.pop_all()
        self._scribe = GroupCommitWriter(self._file)

    def append(self, record: Mapping[str, Any], sound: Path | None = None) -> None:
        """Hands over a finished item, whose file is `sound`; within moments both are on the disk.

        Raises:
            OutputFailed: the disk is full or failed; what was written of a line is cut at the next opening.
        """
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        self._told(self._scribe.write, PendingRecord(line, sound))

    def settle(self) -> None:
        """Waits until all that was handed over is on the disk. Raises as `append` does."""
        self._told(self._scribe.wait)

    def close(self) -> None:
        """Settles, and lets go of the folder. Raises as `append` does."""
        try:
            self._told(self._scribe.close)
        finally:
            self._held.close()

    def _told(self, act: Callable[..., None], *arguments: PendingRecord) -> None:
        try:
            act(*arguments)
        except OSError as error:
            raise OutputFailed(
                f"{error.filename or self.path}: {error.strerror}; make room and run again to go on"
            ) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OutputFailed:
            if kind is None:
                raise

    def _mend(self) -> None:
        """Cuts a last line that a killed process left unfinished."""
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if whole < self._file.seek(0, os.SEEK_END):
            _log.warning("%s: its last line was unfinished and is cut", self.path)
            self._file.truncate(whole)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every result there is, oldest first.

        Raises:
            InputError: a line that is none.
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            found = _parsed(line)
            whole = line.endswith(b"\n")
            if not _is_record(found) and (whole or found is not None):
                raise InputError(
                    f"{self.path}:{number}: is not a result; choose another output folder or move the file away"
                )
            if whole:
                yield found

    def latest(self) -> Iterator[dict[str, Any]]:
        """The result that counts of each item, once all that was handed over is on the disk."""
        self.settle()
        last = {str(record["id"]): number for number, record in enumerate(self.records())}
        return (record for number, record in enumerate(self.records()) if last[str(record["id"])] == number)


def _opened(path: Path) -> BufferedRandom:
    try:
        return path.open("a+b")
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _parsed(line: bytes) -> Any:
    """What a line holds; None where it is not JSON."""
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and "id" in found and "status" in found


def _entry(record: Mapping[str, Any]) -> LedgerEntry:
    return LedgerEntry(sys.intern(str(record["status"])), str(record.get("fingerprint", "")))
