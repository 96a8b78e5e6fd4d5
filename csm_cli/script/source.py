"""What a user wrote, as a tree whose every value knows its line and column."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.audio_lookup import AudioLookup

Keys = tuple[str | int, ...]
Location = tuple[int, int]

STDIN = "<stdin>"
INVALID = object()  # stands for data that could not be parsed
MAX_DEPTH = 32
MAX_VALUES = 100_000
MAX_TEXT_CHARS = 100_000  # characters; two hours of speech
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass
class Source:
    """A script or one line of a manifest, and everything found wrong with it.

    data: plain mappings, lists and scalars, or REFUSED. values, keys: where a value and its key stand, both counted
    from 1; empty for data that came from no file. files: finds what the paths in it mean.
    """

    file: str
    files: AudioLookup
    data: Any = INVALID
    values: dict[Keys, Location] = field(default_factory=dict)
    keys: dict[Keys, Location] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def add_error(self, path: Keys, message: str, at_key: bool = False) -> None:
        """Notes a diagnostic at the value of `path`, or at its key; where there is none, at what encloses it."""
        place = self.keys.get(path) if at_key else None
        inner = path
        while place is None and inner:
            place, inner = self.values.get(inner), inner[:-1]
        line, column = place or self.values.get((), (0, 0))
        self.diagnostics.append(Diagnostic(self.file, line, column, as_written(path), message))

    def complain_at(self, place: Location, path: Keys, message: str) -> None:
        self.diagnostics.append(Diagnostic(self.file, *place, as_written(path), message))

    @property
    def full(self) -> str:
        """What is wrong where there are more values than anybody writes; empty where nothing is."""
        return f"more than {MAX_VALUES} values; write so much as several files" if len(self.values) > MAX_VALUES else ""

    def text(self, value: str, path: Keys, place: Location) -> str:
        """`value`, or nothing and a diagnostic where it holds characters that no text has."""
        if trouble := text_problem(value):
            self.complain_at(place, path, trouble)
        return _CONTROL.sub("", value[:1000] if trouble else value)


def text_problem(text: str) -> str:
    """What is wrong with a text that is endless or holds characters no text has; empty where nothing is."""
    if len(text) > MAX_TEXT_CHARS:
        return f"a text of {len(text)} characters, at most {MAX_TEXT_CHARS}; break it into several"
    bad = _CONTROL.search(text)
    return f"control character U+{ord(bad[0]):04X} cannot be spoken; remove it" if bad else ""


def as_written(path: Keys) -> str:
    """`turns[1].text` for ("turns", 1, "text")."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_key(key)}" for key in path)
    return "".join(parts).removeprefix(".")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,40}", key) else quoted(key)


def quoted(value: object) -> str:
    """A value as a diagnostic names it, on one line and short."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, Mapping):
        return "fields"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]{1,20}", value):
        return value
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:56] + '..."'


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; `-` is standard input.

    Raises:
        ScriptInvalid: it cannot be read, or is not UTF-8.
    """
    name = STDIN if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if name == STDIN else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _refused(name, (0, 0), unreadable_error(error)) from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _refused(name, (0, 0), "expected UTF-8, got UTF-16; save the file as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        place = (before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise _refused(name, place, f"byte 0x{raw[error.start]:02X} is not UTF-8; save the file as UTF-8") from error


def unreadable_error(error: Exception) -> str:
    """Why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory; name a file in it"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {reason}"


def _refused(name: str, place: Location, message: str) -> ScriptInvalid:
    return ScriptInvalid([Diagnostic(name, *place, "", message)])
