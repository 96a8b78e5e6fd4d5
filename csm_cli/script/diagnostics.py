"""Diagnostics as lines of text in columns."""

from __future__ import annotations

from csm_cli.errors import ScriptInvalid

_PATH_WIDTH = 21


def diagnostic_lines(error: ScriptInvalid) -> list[str]:
    """Place, path and message of each diagnostic in columns, then the count; control characters are escaped."""
    rows = [(one.place, one.path, one.message) for one in error.diagnostics]
    first = max((len(place) for place, _, _ in rows), default=0)
    second = max([len(path) for _, path, _ in rows] + [_PATH_WIDTH])
    lines = [f"{place:<{first}} {path:<{second}} {message}" for place, path, message in rows]
    return [_printable(line) for line in [*lines, str(error)]]


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
