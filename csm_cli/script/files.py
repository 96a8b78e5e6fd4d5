"""The files a script names: where they are, and what their headers say."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

LONGEST = 10 * 3600.0


@dataclass
class Files:
    """Finds files beside a script; each header is read once."""

    base: Path
    _headers: dict[Path, float | str] = field(default_factory=dict)

    def find(self, text: str) -> Path | None:
        """The file `text` names: `~` expanded, relative to the script; backslashes may stand for slashes."""
        candidates = [text] if "\\" not in text else [text, text.replace("\\", "/")]
        paths = (self.base / os.path.expanduser(candidate) for candidate in candidates)  # noqa: PTH111
        return next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110

    def trouble(self, path: Path, start: float | None = None, end: float | None = None) -> str:
        """What is wrong with an audio file, or its part from `start` to `end` in seconds; empty where nothing is."""
        if path not in self._headers:
            self._headers[path] = _duration(path)
        seconds = self._headers[path]
        if isinstance(seconds, str):
            return seconds
        length = f"the end of the file ({round(seconds, 2):g} s)"
        if start is not None and start >= seconds:
            return f"start {start:g} s is past {length}"
        if end is not None and end > seconds + 0.001:
            return f"end {end:g} s is past {length}"
        if end is not None and end <= (start or 0.0):
            return f"end {end:g} s is not after start {start or 0.0:g} s"
        return ""


def _duration(path: Path) -> float | str:
    """Seconds of audio by the header, or what is wrong with the file."""
    import soundfile

    if path.is_dir():
        return "is a directory; name an audio file in it"
    try:
        info = soundfile.info(str(path))
    except (RuntimeError, OSError):
        return "cannot be read as audio; convert it to WAV or FLAC"
    seconds = info.frames / info.samplerate
    if seconds <= 0:
        return "has no audio in it"
    return seconds if seconds <= LONGEST else f"is {seconds / 3600:.1f} hours long; name a part of at most 10 hours"
