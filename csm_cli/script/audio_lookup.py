"""The files a script names: where they are, and what their headers say."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from csm_cli.errors import AudioUnreadable

HEADERS_KEPT = 4096  # so that a long manifest, each line with its own audio, does not grow


@dataclass
class AudioLookup:
    """Finds files beside a script; each header is read once, and the last thousands are kept."""

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
            if len(self._headers) > HEADERS_KEPT:
                del self._headers[next(iter(self._headers))]
        seconds = self._headers[path]
        if isinstance(seconds, str):
            return seconds
        from csm_cli.audio.io import range_problem

        return range_problem(seconds, start, end)


def _duration(path: Path) -> float | str:
    """Seconds of audio by the header, or what is wrong with the file."""
    from csm_cli.audio.io import probe

    try:
        return probe(path).duration
    except AudioUnreadable as error:
        return str(error).removeprefix(f"{path}: ")
