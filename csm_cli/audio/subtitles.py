"""Subtitles: the times of turns as SubRip, WebVTT and JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_ARROW = re.compile(r"(?<!-)-{2,}>")


@dataclass(frozen=True)
class Cue:
    """start, end: seconds; speaker: by the name in the script."""

    start: float
    end: float
    speaker: str
    text: str


def srt(cues: Sequence[Cue]) -> str:
    """SubRip. It has no field for the speaker, whose name is put before the text. Players interpret `<i>` and the like.

    A `-->` in a text, which would look like the times of a cue, is changed to `->`, however many dashes it has.
    """

    def one_line(text: str) -> str:
        return _ARROW.sub("->", " ".join(text.split()))

    blocks = []
    for number, cue in enumerate(by_start(cues), 1):
        times = f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}"
        blocks.append(f"{number}\n{times}\n{one_line(cue.speaker)}: {one_line(cue.text)}\n")
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT with voice spans (https://www.w3.org/TR/webvtt1/#webvtt-cue-voice-span)."""

    def escape(text: str) -> str:
        return html.escape(" ".join(text.split()), quote=False)

    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n<v {escape(cue.speaker)}>{escape(cue.text)}\n"
        for cue in by_start(cues)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def to_json(cues: Sequence[Cue]) -> str:
    records = [asdict(cue) | {"start": round(cue.start, 3), "end": round(cue.end, 3)} for cue in by_start(cues)]
    return json.dumps(records, ensure_ascii=False, indent=1) + "\n"


SUBTITLE_FORMATS = {"srt": srt, "vtt": vtt, "json": to_json}


def by_start(cues: Sequence[Cue]) -> list[Cue]:
    """Sorted by start: players skip a cue that starts before the one above it."""
    return sorted(cues, key=lambda cue: cue.start)


def _clock(seconds: float, decimal_point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{decimal_point}{rest % 1000:03d}"
