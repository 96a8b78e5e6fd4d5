"""A turn as another program wrote it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextLine:
    """number: of its line in the file; start, end: seconds, where known; audio: the file of one that was spoken."""

    number: int
    speaker: str
    text: str
    start: float | None = None
    end: float | None = None
    audio: str = ""
