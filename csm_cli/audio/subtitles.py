"""Subtitles: the times of turns, and of words if they are known, as SubRip, WebVTT and JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from csm_cli.types import TimedWord

_ARROW = re.compile(r"(?<!-)-{2,}>")
_SHORTEST_CUE = 0.01  # seconds; players skip a cue that ends where it starts


@dataclass(frozen=True)
class Cue:
    """start, end: seconds; speaker: by the name in the script. words: those of the text with their times, or none."""

    start: float
    end: float
    speaker: str
    text: str
    words: tuple[TimedWord, ...] = ()


def srt(cues: Sequence[Cue]) -> str:
    """SubRip. It has no field for the speaker, whose name is put before the text. Players interpret `<i>` and the like.

    It has no times inside a cue either: where words have times, each is a cue of its own, without the speaker.
    A `-->` in a text, which would look like the times of a cue, is changed to `->`, however many dashes it has.
    """

    def one_line(text: str) -> str:
        return _ARROW.sub("->", " ".join(text.split()))

    blocks = []
    parts = [part for cue in cues for part in _word_cues(cue)]
    for number, cue in enumerate(by_start(parts), 1):
        times = f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}"
        speaker = "" if cue.words else f"{one_line(cue.speaker)}: "
        blocks.append(f"{number}\n{times}\n{speaker}{one_line(cue.text)}\n")
    return "\n".join(blocks)


def _word_cues(cue: Cue) -> Iterator[Cue]:
    """A cue for each word; the cue itself if it has none."""
    for word in cue.words:
        end = max(word.end, word.start + _SHORTEST_CUE)
        yield replace(cue, start=word.start, end=end, text=word.text, words=(word,))
    if not cue.words:
        yield cue


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT with voice spans, and timestamps before words (https://www.w3.org/TR/webvtt1/#webvtt-cue-timestamp)."""

    def escape(text: str) -> str:
        return html.escape(" ".join(text.split()), quote=False)

    blocks = [
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n<v {escape(cue.speaker)}>{_timestamped(cue)}\n"
        for cue in by_start(cues)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _timestamped(cue: Cue) -> str:
    """The text of a cue with a timestamp before each word that starts after the one before it, and inside the cue."""
    text, result, position, last = " ".join(cue.text.split()), "", 0, round(cue.start * 1000)
    for word in cue.words:
        place, start = text.find(word.text, position), round(word.start * 1000)
        if place >= 0 and last < start < round(cue.end * 1000):
            result += f"{html.escape(text[position:place], quote=False)}<{_clock(word.start, '.')}>"
            position, last = place, start
    return result + html.escape(text[position:], quote=False)


def to_json(cues: Sequence[Cue]) -> str:
    return json.dumps([_cue_record(cue) for cue in by_start(cues)], ensure_ascii=False, indent=1) + "\n"


def _cue_record(cue: Cue) -> dict[str, object]:
    record = asdict(cue) | {"start": round(cue.start, 3), "end": round(cue.end, 3)}
    words = [asdict(each) | {"start": round(each.start, 3), "end": round(each.end, 3)} for each in cue.words]
    del record["words"]
    return record | ({"words": words} if words else {})


SUBTITLE_FORMATS = {"srt": srt, "vtt": vtt, "json": to_json}


def by_start(cues: Sequence[Cue]) -> list[Cue]:
    """Sorted by start: players skip a cue that starts before the one above it."""
    return sorted(cues, key=lambda cue: cue.start)


def _clock(seconds: float, decimal_point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{decimal_point}{rest % 1000:03d}"
