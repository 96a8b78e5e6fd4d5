"""The data a user wrote, with the line and column of every value, and the diagnostics about it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.files import AudioLookup, Location
from csm_cli.script.limits import MAX_FIELDS_EXPLAINED, MAX_NAME_CHARS, MAX_SPEAKERS, MAX_TEXT_CHARS

Keys = tuple[str | int, ...]

COMMA_ENDS_TEXT = "in { }, a comma ends a text without quotes; put the text in quotes"
INVALID = object()  # the data of text that could not be parsed
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_WHITE_SPACE = dict.fromkeys(map(ord, "\x0b\x0c"), " ")  # form feeds and vertical tabs, as pdftotext writes them
_PLAIN_KEY = re.compile(r"[\w-]{1,40}")
_PATH_WIDTH = 21


@dataclass
class Source:
    """A script or one line of a manifest, and every diagnostic about it.

    data: plain mappings, lists and scalars, or INVALID. locations, key_locations: of each value and of its key; empty
    for data that came from no file. comments: what follows a text after " #" in its line. files: finds the audio files
    that the data names.
    """

    file: str
    files: AudioLookup
    data: Any = INVALID
    locations: dict[Keys, Location] = field(default_factory=dict)
    key_locations: dict[Keys, Location] = field(default_factory=dict)
    comments: dict[Keys, str] = field(default_factory=dict)
    has_named_comment: bool = False
    diagnostics: list[Diagnostic] = field(default_factory=list)
    _suggestions: int = 0

    def add_error(self, path: Keys, message: str, at_key: bool = False) -> None:
        """Adds a diagnostic at the value of `path` or at its key; without a location, at what encloses the value."""
        location = self.key_locations.get(path) if at_key else None
        enclosing = path
        while location is None and enclosing:
            location, enclosing = self.locations.get(enclosing), enclosing[:-1]
        self.add_error_at(location or self.locations.get((), (0, 0)), path, message)

    def add_error_at(self, location: Location, path: Keys, message: str) -> None:
        self.diagnostics.append(Diagnostic(self.file, *location, format_path(path), message))

    def suggestion(self, name: object, names: Iterable[str], cutoff: float = 0.6) -> str | None:
        """The one of `names` that `name` probably is a misspelling of; None after the first dozens of a source."""
        self._suggestions += 1
        if self._suggestions > MAX_FIELDS_EXPLAINED or len(str(name)) > MAX_NAME_CHARS:
            return None
        candidates = sorted(each for each in islice(names, MAX_SPEAKERS) if len(each) <= MAX_NAME_CHARS)
        return next(iter(difflib.get_close_matches(str(name), candidates, n=1, cutoff=cutoff)), None)

    def text(self, value: str, path: Keys, location: Location) -> str:
        """`value` without control characters; adds a diagnostic if it had any or is too long."""
        value = value.translate(_WHITE_SPACE)
        problem = text_problem(value)
        if problem:
            self.add_error_at(location, path, problem)
        return _CONTROL.sub("", value[:1000] if problem else value)


def text_problem(text: str) -> str:
    """Why a text cannot be spoken: it is too long or has control characters; empty if it can."""
    fault = text_fault(text)
    return fault[1] if fault else ""


def text_fault(text: str, max_chars: int = MAX_TEXT_CHARS) -> tuple[int, str] | None:
    """The offset in a text where it cannot be spoken, and why; None if it can."""
    if len(text) > max_chars:
        return 0, f"the text has {len(text)} characters, more than {max_chars}; break it into several"
    control = _CONTROL.search(text)
    if control is None:
        return None
    return control.start(), f"control character U+{ord(control[0]):04X} cannot be spoken; remove it"


def format_path(path: Keys) -> str:
    """`turns[1].text` for ("turns", 1, "text")."""
    written = ""
    for key in path:
        if isinstance(key, int):
            written += f"[{key}]"
        else:
            written += "." + (key if _PLAIN_KEY.fullmatch(key) else quoted(key))
    return written.removeprefix(".")


def quoted(value: object) -> str:
    """A value as diagnostics show it, short and on one line."""
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


def diagnostic_lines(error: ScriptInvalid) -> list[str]:
    """Location, path and message of each diagnostic in columns, then the count; control characters are escaped."""
    cells = [(each.location, each.path, each.message) for each in error.diagnostics]
    first = max((len(location) for location, _, _ in cells), default=0)
    second = max([len(path) for _, path, _ in cells] + [_PATH_WIDTH])
    lines = [f"{location:<{first}} {path:<{second}} {message}" for location, path, message in cells]
    return [
        "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        for line in [*lines, str(error)]
    ]
