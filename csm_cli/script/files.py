"""Files a user names: text as a whole, by lines or by CSV rows, and the audio files that scripts refer to."""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from csm_cli.errors import AudioUnreadable, Diagnostic, InputError, ScriptInvalid
from csm_cli.script.limits import (
    MAX_CACHED_HEADERS,
    MAX_LINE_BYTES,
    MAX_PIPE_BYTES,
    MAX_TEXT_FILE_BYTES,
    MAX_TRANSCRIPT_BYTES,
)
from csm_cli.storage.remote import fetch, fetched_file, is_url

_SIGNATURES = {  # of files that are no text
    b"PK\x03\x04": "a ZIP file, such as a Word, Excel or EPUB document; save it as plain text or CSV",
    b"%PDF": "a PDF document; save its text as plain text",
    b"{\\rtf": "an RTF document; save it as plain text",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel document; save it as plain text or CSV",
    b"\x1f\x8b": "compressed by gzip; uncompress it",
    b"RIFF": "a sound or video file, not text",
    b"fLaC": "a sound file, not text",
    b"OggS": "a sound file, not text",
    b"ID3": "a sound file, not text",
    b"\x89PNG": "a picture, not text",
    b"\xff\xd8\xff": "a picture, not text",
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8",
}

Location = tuple[int, int]  # line and column, both from 1; (0, 0) is the whole file

STDIN = "<stdin>"


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; `-` is standard input.

    Raises:
        ScriptInvalid: the file cannot be read, is not UTF-8, or is larger than MAX_TEXT_FILE_BYTES.
    """
    lines = LineStream(path, MAX_TEXT_FILE_BYTES)
    if lines.size > MAX_TEXT_FILE_BYTES:
        message = f"is larger than {MAX_TEXT_FILE_BYTES // 1_000_000} MB; split it into several files"
        raise ScriptInvalid([Diagnostic(lines.name, 0, 0, "", message)])
    return "".join(lines)


def read_transcript(path: Path) -> str:
    """The text of a file that another file or a flag led to: never of a pipe or a device.

    Raises:
        ScriptInvalid: it cannot be read, is not a regular file, is too large, or is not UTF-8.
    """
    try:
        is_regular, size = path.is_file(), path.stat().st_size
    except OSError as error:
        raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from error
    if not is_regular or size > MAX_TRANSCRIPT_BYTES:
        message = "expected a text file with the words of the recording, got "
        message += f"{size:,} bytes" if is_regular else "a pipe, a device or a folder"
        raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", message)])
    return read_text(path)


class LineStream:
    """The lines of a UTF-8 file that may be larger than memory, with their line ends.

    Each iteration starts at the first line; only one may run at a time. Standard input, pipes and URLs are copied to a
    temporary file.

    Raises:
        ScriptInvalid: the file cannot be read; while iterating: it is not UTF-8, or a line is too long.
        InputError: while iterating: the file has changed since it was opened.
    """

    def __init__(self, path: Path | str, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.name = STDIN if str(path) == "-" else str(path)
        self._max_line_bytes = max_line_bytes
        try:
            self._file = _open_seekable(self.name)
            weakref.finalize(self, self._file.close)
            self._size_and_mtime = self._stat()
        except FileNotFoundError as error:
            raise self._invalid((0, 0), "no such file") from error
        except IsADirectoryError as error:
            raise self._invalid((0, 0), "is a directory; name a file in it") from error
        except (OSError, ValueError) as error:
            raise self._invalid((0, 0), f"cannot be read: {getattr(error, 'strerror', error)}") from error

    @property
    def file(self) -> IO[bytes]:
        """The open file."""
        return self._file

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size_and_mtime[0]

    def __iter__(self) -> Iterator[str]:
        if self._stat() != self._size_and_mtime:
            raise InputError(f"{self.name} was changed while it was read; run again")
        self._file.seek(0)
        for number, raw in enumerate(iter(lambda: self._file.readline(self._max_line_bytes + 1), b""), 1):
            if len(raw) > self._max_line_bytes:
                message = f"the line is longer than {self._max_line_bytes // 1_000_000} MB; break it into several"
                raise self._invalid((number, 1), message)
            if number == 1 and (kind := other_kind(raw)):
                raise self._invalid((1, 1), f"is {kind}")
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                column = len(raw[: error.start].decode("utf-8")) + 1
                message = f"byte 0x{raw[error.start]:02X} is not UTF-8; save the file as UTF-8"
                raise self._invalid((number, column), message) from error

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def _invalid(self, location: Location, message: str) -> ScriptInvalid:
        return ScriptInvalid([Diagnostic(self.name, *location, "", message)])


def other_kind(head: bytes) -> str:
    """What a file is that begins with `head`, and what to do, where it is no text in UTF-8; else empty."""
    return next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), "")


def numbered_lines(lines: Iterable[str], comments: bool = False) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1. comments: lines that begin with # are left out too."""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped and not (comments and stripped.startswith("#")):
            yield number, line.rstrip(" \t\r\n")


@dataclass
class AudioLookup:
    """Finds the audio files a script names. base: the folder of the script, or its URL, whose files are fetched.

    Audio headers are read once and cached.
    """

    base: Path | str
    _headers: dict[Path, float | str] = field(default_factory=dict)

    def find(self, name: str) -> Path | None:
        """The existing file that `name` means: relative to `base`, `~` expanded; backslashes may stand for slashes."""
        candidates = [name] if "\\" not in name else [name, name.replace("\\", "/")]
        if isinstance(self.base, str):
            return fetched_file(self.base, candidates[-1])
        paths = (self.base / os.path.expanduser(candidate) for candidate in candidates)  # noqa: PTH111
        return next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110

    def problem(self, path: Path, start: float | None = None, end: float | None = None) -> str:
        """Why the file, or its part from `start` to `end` in seconds, cannot be used; empty if it can."""
        from csm_cli.audio.io import probe, range_problem

        if path not in self._headers:
            try:
                self._headers[path] = probe(path).duration
            except AudioUnreadable as error:
                self._headers[path] = str(error).removeprefix(f"{path}: ")
            if len(self._headers) > MAX_CACHED_HEADERS:
                del self._headers[next(iter(self._headers))]
        seconds = self._headers[path]
        return seconds if isinstance(seconds, str) else range_problem(seconds, start, end)


def _open_seekable(name: str) -> IO[bytes]:
    """The file, or a temporary copy of what a pipe or URL delivers. Raises OSError for a device too; InputError."""
    if name == STDIN:
        return _copied(sys.stdin.buffer)
    if is_url(name):
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            fetch(name, copy, MAX_PIPE_BYTES)
        except BaseException:
            copy.close()
            raise
        return copy
    file = Path(name).open("rb")  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    with file:
        is_endless = stat.S_ISCHR(mode) and not file.isatty() and not Path(name).samefile(os.devnull)
        if stat.S_ISBLK(mode) or is_endless:
            raise OSError(errno.EINVAL, "is a device")
        return _copied(file)


def _copied(pipe: IO[bytes]) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    for block in iter(lambda: pipe.read(1 << 20), b""):
        copy.write(block)
        if copy.tell() > MAX_PIPE_BYTES:
            copy.close()
            raise OSError(errno.EFBIG, f"delivers more than {MAX_PIPE_BYTES >> 30} GB")
    copy.flush()
    return copy
