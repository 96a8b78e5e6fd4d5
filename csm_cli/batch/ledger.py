"""results.jsonl: one object per finished item, only ever appended to; the last one of an id counts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from csm_cli.errors import InputError, OutputFailed, OutputRefused, UsageError

LEDGER = "results.jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is remembered of an item: how it ended ("ok", "failed"), and of what it was made."""

    status: str
    fingerprint: str


class Ledger:
    """The ledger of a folder, held by one process until it is closed, or until the process dies in whatever way.

    entries: by id, what the file says at opening and what was added since.

    Raises:
        UsageError: another process holds it.
        OutputRefused: the folder or the file cannot be made or written to.
        InputError: the file is somebody else's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self._lock = _locked(self.path)
        try:
            self._file = _opened(self.path)
        except BaseException:
            self._lock.release()
            raise
        try:
            self.entries = {str(record["id"]): _entry(record) for record in self.records()}
            self._mend()
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished item; when this returns it is on the disk.

        Raises:
            OutputFailed: the disk is full or failed; what was written of the line is cut at the next opening.
        """
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputFailed(f"{self.path}: {error.strerror}; make room and run again to go on") from error
        self.entries[str(record["id"])] = _entry(record)

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written has been told when it was
            _log.debug("%s: closed with a line unwritten", self.path)
        self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _opened(path: Path) -> BufferedRandom:
    try:
        return path.open("a+b")
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _locked(path: Path) -> FileLock:
    """A lock beside the file; the system lets go of it when the process ends, in whatever way."""
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"{path} is in use by another run; wait for it to end, or write to another folder") from error
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return lock


def _parsed(line: bytes) -> Any:
    """What a line holds; None where it is not JSON."""
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None


def _is_record(found: Any) -> bool:
    return isinstance(found, dict) and "id" in found and "status" in found


def _entry(record: Mapping[str, Any]) -> Entry:
    return Entry(str(record["status"]), str(record.get("fingerprint", "")))
