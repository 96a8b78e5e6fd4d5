"""Subtitles: who says what from when to when, as SubRip, WebVTT and JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cue:
    """start, end: seconds; speaker: as the script names them."""

    start: float
    end: float
    speaker: str
    text: str


def srt(cues: Sequence[Cue]) -> str:
    """SubRip, which has no fields for names: they stand before the text. Players read `<i>` and the like in it."""
    return "\n".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_line(cue.speaker)}: {_line(cue.text)}\n"
        for number, cue in enumerate(in_order(cues), 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT, each cue with its voice (https://www.w3.org/TR/webvtt1/#webvtt-cue-voice-span)."""
    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n<v {_escaped(cue.speaker)}>{_escaped(cue.text)}\n"
        for cue in in_order(cues)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def to_json(cues: Sequence[Cue]) -> str:
    records = [asdict(cue) | {"start": round(cue.start, 3), "end": round(cue.end, 3)} for cue in in_order(cues)]
    return json.dumps(records, ensure_ascii=False, indent=1) + "\n"


SUBTITLE_FORMATS = {"srt": srt, "vtt": vtt, "json": to_json}


def in_order(cues: Sequence[Cue]) -> list[Cue]:
    """By their starts; players skip a cue that begins before the one above it."""
    return sorted(cues, key=lambda cue: cue.start)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _line(text: str) -> str:
    """On one line, and without what would look like a cue's times."""
    return " ".join(text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False)
