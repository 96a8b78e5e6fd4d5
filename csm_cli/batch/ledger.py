"""results.jsonl: one JSON object per finished item, appended only; the newest one of an id counts.

An item is done when its line is on disk; its line is written when its audio is. Lines are flushed in groups by a
thread of their own: the next group gathers meanwhile, so no item waits for the disk. A killed process loses the lines
of the last moment, never part of one; those items are generated again, with the same result. In an object store, "on
disk" means that it is uploaded, and a moment is a few seconds.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from csm_cli.errors import CsmError, InputError, OutputFailed, OutputRefused
from csm_cli.storage.outputs import OutputStore
from csm_cli.storage.paths import relative_parts
from csm_cli.storage.untrusted import parse_json

LEDGER = "results.jsonl"
CODES_SUFFIX = ".codes.npy"  # of the file with an item's codes, beside its audio
SCHEMA = 2  # of a line
_LOG = logging.getLogger(__name__)

LedgerRecord = dict[str, Any]
_FIELD_TYPES: dict[str, Any] = {
    "id": str | int,
    "file": str,
    "shard": str,
    "fingerprint": str,
    "duration_s": int | float,
    "seeds_tried": list,
    "warnings": list,
    "turns": list,
    "subtitles": dict,
}


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """The newest result of an item.

    status: "ok" or "failed". fingerprint: of the item. last_seed: the highest seed that failed with this fingerprint,
    -1 for none. shard: the file in the ledger's folder that it is packed in, empty for none.
    """

    status: str
    fingerprint: str
    last_seed: int = -1
    shard: str = ""


class Ledger:
    """The ledger of a folder or an object store, locked by this process until it is closed or the process ends.

    Lines are written in order by a thread, all waiting ones with one fsync; after an error nothing more is written.
    entries: by item id, as of opening. path: of the file, or of its copy here.

    Raises:
        UsageError: another process has the lock.
        OutputRefused: the folder or the file cannot be made or written to.
        InputError: the file is not a ledger, or of another version of csm; it is left unchanged.
    """

    def __init__(self, outputs: OutputStore) -> None:
        self.outputs = outputs
        self.path = outputs.folder / LEDGER
        self._location = outputs.location(self.path)
        with ExitStack() as stack:
            stack.enter_context(outputs.open_log(LEDGER))
            try:
                self._file = stack.enter_context(self.path.open("a+b"))
            except OSError as error:
                reason = f"cannot be written ({error.strerror})"
                raise OutputRefused(f"{self._location}: {reason}; choose another folder") from error
            self._earlier = 0  # records as of opening
            self.entries = _entries(self._counted(self.records()))
            self._cut_unfinished_line()
            self._resources = stack.pop_all()
        self._queue: Queue[tuple[bytes, Sequence[Path]] | threading.Event | None] = Queue()
        # a line and its files; an event to set when all before it is on disk; None: the last one
        self._error: OSError | CsmError | None = None
        self._thread = threading.Thread(target=self._write_lines, name="ledger", daemon=True)
        self._thread.start()

    def append(self, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Appends a finished item with its files; all are on disk within moments.

        Raises:
            OutputFailed: the disk is full or failed; an unfinished line is removed at the next opening.
        """
        self._raise_error()
        line = json.dumps({"schema": SCHEMA, **record}, ensure_ascii=False)
        self._queue.put((line.encode("utf-8", "surrogateescape") + b"\n", files))

    def flush(self) -> None:
        """Waits until all lines appended so far are on disk; may be called by any thread. Raises as `append`."""
        written = threading.Event()
        self._queue.put(written)
        written.wait()
        self._raise_error()

    def close(self) -> None:
        """Flushes, and releases the lock. Raises as `append`."""
        self._queue.put(None)
        self._thread.join()
        with suppress(OSError):  # of a line that could not be written; its error is raised below
            self._file.close()
        if self._error:
            with suppress(OSError, CsmError):
                self._resources.__exit__(type(self._error), self._error, self._error.__traceback__)
        self._resources.close()
        self._raise_error()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OutputFailed:
            if kind is None:
                raise

    def records(self) -> Iterator[LedgerRecord]:
        """Every result, oldest first. Raises InputError as `_records`."""
        self._file.seek(0)
        yield from _records(self._location, self._file)

    def latest(self) -> Iterator[LedgerRecord]:
        """The newest result of each item, appended ones included. Raises as `append`."""
        self.flush()
        last = {str(record["id"]): number for number, record in enumerate(self.records())}
        return (record for number, record in enumerate(self.records()) if last[str(record["id"])] == number)

    def _counted(self, records: Iterable[LedgerRecord]) -> Iterator[LedgerRecord]:
        for record in records:
            self._earlier += 1
            yield record

    def new_ids(self) -> set[str]:
        """The ids of the items that were appended since opening. Raises as `append`."""
        self.flush()
        return {str(record["id"]) for number, record in enumerate(self.records()) if number >= self._earlier}

    def _cut_unfinished_line(self) -> None:
        self._file.seek(0)
        complete = sum(len(line) for line in self._file if line.endswith(b"\n"))
        if complete < self._file.seek(0, os.SEEK_END):
            _LOG.warning("%s: its last line was unfinished and is removed", self._location)
            self._file.truncate(complete)

    def _raise_error(self) -> None:
        if isinstance(self._error, CsmError):
            raise self._error
        if self._error:
            problem = f"{self._error.filename or self.path}: {self._error.strerror}"
            hint = "run again to go on" if self._error.errno == errno.ENOENT else "make room and run again to go on"
            raise OutputFailed(f"{problem}; {hint}") from self._error

    def _write_lines(self) -> None:
        """The thread: writes all waiting lines, each after its files are on disk."""
        with ThreadPoolExecutor(self.outputs.threads) as pool:
            written = -self.outputs.interval
            while True:
                group = [self._queue.get()]
                is_urgent = not isinstance(group[0], tuple)
                with suppress(Empty):
                    while True:
                        wait = 0.0 if is_urgent else written + self.outputs.interval - time.monotonic()
                        group.append(self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait())
                        is_urgent = is_urgent or not isinstance(group[-1], tuple)
                records = [each for each in group if isinstance(each, tuple)]
                if records and not self._error:
                    try:
                        if not self._is_in_place():
                            raise OSError(errno.ENOENT, "the folder was moved or removed while csm wrote to it")
                        list(pool.map(self.outputs.publish, {file for _, files in records for file in files}))
                        lines = b"".join(line for line, _ in records)
                        self.outputs.append(lines)
                        self._file.write(lines)
                        self._file.flush()
                        os.fsync(self._file.fileno())
                    except (OSError, CsmError) as error:
                        self._error = error
                    written = time.monotonic()
                for each in group:
                    if isinstance(each, threading.Event):
                        each.set()
                if None in group:
                    return

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one at `path`."""
        try:
            found, own = self.path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def read_entries(outputs: OutputStore) -> dict[str, LedgerEntry]:
    """The newest result of each item, without the lock: of a moment ago where a run is writing; empty without a file.

    Raises:
        InputError: as `Ledger`, or the file cannot be read.
    """
    path = outputs.folder / LEDGER
    try:
        with outputs.read_log(LEDGER) as file:
            return _entries(_records(outputs.location(path), file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{outputs.location(path)}: cannot be read ({error.strerror})") from error


def _entries(records: Iterable[LedgerRecord]) -> dict[str, LedgerEntry]:
    entries: dict[str, LedgerEntry] = {}
    for record in records:
        name = str(record["id"])
        entries[name] = _entry(record, entries.get(name))
    return entries


def _records(path: str, lines: Iterable[bytes]) -> Iterator[LedgerRecord]:
    """Every result, oldest first; an unfinished last line is passed over.

    Raises:
        InputError: a line that is no result, or of another schema, or whose file is not in the folder.
    """
    for number, line in enumerate(lines, 1):
        complete = line.endswith(b"\n")
        try:
            record = parse_json(line.decode("utf-8", "surrogateescape"))
        except ValueError:
            record = None
        is_result = isinstance(record, dict) and "id" in record and record.get("status") in ("ok", "failed")
        hint = "choose another output folder or move the file away"
        if not is_result and (complete or record is not None):
            raise InputError(f"{path}:{number}: is not a result; {hint}")
        if not complete:
            continue
        if record.get("schema") != SCHEMA:
            hint = "name another output folder, or move the file away to generate all items again"
            raise InputError(f"{path}: was written by another version of csm and is left unchanged; {hint}")
        if invalid := _invalid_field(record):
            raise InputError(f"{path}:{number}: is not a result ({invalid} is invalid); {hint}")
        for name in ("file", "shard"):
            try:
                relative_parts(record.get(name, "none"))
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}; remove the line, or generate again") from error
        yield record


def _invalid_field(record: LedgerRecord) -> str | None:
    """The first field without the type that the commands rely on, since others can write the file too."""
    if record["status"] == "ok" and "file" not in record:
        return "file"
    for name, kind in _FIELD_TYPES.items():
        if name in record and not isinstance(record[name], kind):
            return name
    if not all(isinstance(seed, int) for seed in record.get("seeds_tried", ())):
        return "seeds_tried"
    turns = record.get("turns", ())
    return (
        None if all(isinstance(each, dict) and isinstance(each.get("takes", []), list) for each in turns) else "turns"
    )


def _entry(record: LedgerRecord, before: LedgerEntry | None) -> LedgerEntry:
    fingerprint = record.get("fingerprint", "")
    last_seed = max(record.get("seeds_tried", ()), default=-1)
    if before and before.fingerprint == fingerprint:
        last_seed = max(last_seed, before.last_seed)
    shard = sys.intern(str(record.get("shard", "")))
    return LedgerEntry(sys.intern(str(record["status"])), fingerprint, last_seed, shard)
