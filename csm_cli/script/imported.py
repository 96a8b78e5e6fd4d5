"""What a dialogue in another format holds: its turns, and what of it is not spoken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.files import STDIN

MAX_SHOWN = 5  # parts left out, or names, that a message lists


@dataclass(frozen=True)
class ImportedTurn:
    """A turn of a file. line: its number; start, end: seconds, both 0 if unknown; audio: file of a recorded turn."""

    line: int
    speaker: str
    text: str
    start: float = 0.0
    end: float = 0.0
    audio: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A part of a file that is not spoken. line: its number."""

    line: int
    reason: str


def invalid_line(path: str, line: int, message: str) -> ScriptInvalid:
    """The error of a line of a file that is converted."""
    return ScriptInvalid([Diagnostic(STDIN if path == "-" else path, line, 1, "", message)])


def list_left_out(parts: Sequence[LeftOut]) -> str:
    """`line 3: a sound, line 8: no text and 2 more`."""
    shown = ", ".join(f"line {part.line}: {part.reason}" for part in parts[:MAX_SHOWN])
    return shown + (f" and {len(parts) - MAX_SHOWN} more" if len(parts) > MAX_SHOWN else "")
