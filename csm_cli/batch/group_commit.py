"""Lines to the disk, many with one fsync, in a thread beside the one that makes them."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

_AT_ONCE = 8  # files that are flushed together: a journalling file system serves them with few writes


@dataclass(frozen=True)
class PendingRecord:
    """A line, and the file that has to be on the disk before it."""

    line: bytes
    file: Path | None = None


class GroupCommitWriter:
    """Appends lines to an open file, in order. What went wrong is raised by whatever is called next, once."""

    def __init__(self, file: BufferedRandom) -> None:
        self._file = file
        self._turn = threading.Condition()
        self._waiting: list[PendingRecord] = []
        self._busy = self._ending = False
        self._trouble: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def write(self, entrusted: PendingRecord) -> None:
        with self._turn:
            self._raise()
            self._waiting.append(entrusted)
            self._turn.notify_all()

    def wait(self) -> None:
        """Until all lines are on the disk."""
        with self._turn:
            self._turn.wait_for(lambda: self._trouble or not (self._waiting or self._busy))
            self._raise()

    def close(self) -> None:
        """Waits, and closes the file."""
        try:
            self.wait()
        finally:
            with self._turn:
                self._ending = True
                self._turn.notify_all()
            self._thread.join()

    def _raise(self) -> None:
        if self._trouble:
            raise self._trouble

    def _work(self) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while group := self._next():
                try:
                    list(pool.map(_flushed, {each.file for each in group if each.file}))
                    self._file.writelines(each.line for each in group)
                    self._file.flush()
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._stop(error)
        with suppress(OSError):  # of a line that could not be written, which has been told
            self._file.close()

    def _next(self) -> list[PendingRecord]:
        """All that waits, as soon as something does; nothing at the end."""
        with self._turn:
            self._busy = False
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._waiting or self._ending)
            group, self._waiting = self._waiting, []
            self._busy = bool(group)
            return group

    def _stop(self, error: OSError) -> None:
        with self._turn:
            self._trouble, self._waiting, self._ending = error, [], True


def _flushed(file: Path) -> None:
    """What could not be flushed is removed; what somebody has already taken away is theirs."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        os.close(descriptor)
