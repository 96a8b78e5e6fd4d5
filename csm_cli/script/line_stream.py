"""The lines of a file that may be larger than memory, as often as they are wanted."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from csm_cli.errors import Diagnostic, InputError, ScriptInvalid
from csm_cli.script.source import STDIN, Location, unreadable_error

MAX_LINE_CHARS = 4_000_000  # bytes of one line


class LineStream:
    """The lines of a UTF-8 file with their ends; standard input and pipes are kept in a temporary file.

    One pass at a time: iterating begins anew.

    Raises:
        ScriptInvalid: it cannot be read; in a pass, it is not UTF-8 or has no lines to speak of.
        InputError: in a pass, it is not what it was when it was opened.
    """

    def __init__(self, path: Path | str) -> None:
        self.name = STDIN if str(path) == "-" else str(path)
        try:
            self._file = _seekable(self.name)
            weakref.finalize(self, self._file.close)
            self._state = self._looked_at()
        except (OSError, ValueError) as error:
            raise self._refused((0, 0), unreadable_error(error)) from error

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._state[0]

    def __iter__(self) -> Iterator[str]:
        if self._looked_at() != self._state:
            raise InputError(f"{self.name} was changed while it was read; run again")
        self._file.seek(0)
        for number, raw in enumerate(iter(lambda: self._file.readline(MAX_LINE_CHARS + 1), b""), 1):
            if len(raw) > MAX_LINE_CHARS:
                raise self._refused(
                    (number, 1), f"a line of more than {MAX_LINE_CHARS // 1_000_000} MB; break it into several"
                )
            if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise self._refused((0, 0), "expected UTF-8, got UTF-16; save the file as UTF-8")
            yield self._decoded(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, number)

    def _decoded(self, raw: bytes, number: int) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            place = number, len(raw[: error.start].decode("utf-8")) + 1
            byte = raw[error.start]
            raise self._refused(place, f"byte 0x{byte:02X} is not UTF-8; save the file as UTF-8") from error

    def _looked_at(self) -> tuple[int, int]:
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def _refused(self, place: Location, message: str) -> ScriptInvalid:
        return ScriptInvalid([Diagnostic(self.name, *place, "", message)])


def numbered_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that hold something, numbered from 1; those that begin with # are comments."""
    for number, line in enumerate(lines, 1):
        inside = line.strip()
        if inside and not inside.startswith("#"):
            yield number, line.rstrip(" \t\r\n")


def _seekable(name: str) -> IO[bytes]:
    """The file, or what came through a pipe."""
    if name == STDIN:
        return _spooled(sys.stdin.buffer)
    file = Path(name).open("rb")  # noqa: SIM115
    if file.seekable():
        return file
    with file:
        return _spooled(file)


def _spooled(pipe: IO[bytes]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    shutil.copyfileobj(pipe, file)
    file.flush()
    return file
