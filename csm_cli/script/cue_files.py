"""Subtitle files as cues: SubRip, WebVTT, Advanced SubStation Alpha, SBV, LRC, and transcripts of recognizers.

SubRip has no standard: a cue ends where the next time line begins, so that blank lines in a text, or none between two
cues, lose and add nothing. WebVTT: https://www.w3.org/TR/webvtt1/. ASS is read by pysubs2. SBV is YouTube's, LRC that
of lyrics. Transcripts are the JSON of Whisper, whisperX and whisper.cpp, and the lines that Whisper prints.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from csm_cli.script.imported import LeftOut, invalid_line
from csm_cli.storage.untrusted import parse_json

_LOG = logging.getLogger(__name__)

_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})(?:[,.](\d{1,9}))?"
_TIMES = re.compile(rf"^\s*{_TIME}[ \t]*-->[ \t]*{_TIME}(?:[ \t].*)?$")
_PRINTED = re.compile(rf"^\s*\[{_TIME}[ \t]*-->[ \t]*{_TIME}\](.*)$")  # with the text after the times
_SBV_TIMES = re.compile(rf"^{_TIME},{_TIME}[ \t]*$")
_LRC_TIME = re.compile(r"[ \t]*\[(\d{1,4}):(\d{1,2})(?:[.:](\d{1,3}))?\]")
_LRC_FIELD = re.compile(r"[ \t]*\[(?:[a-z#]{1,20}):[^\]]*\][ \t]*$", re.IGNORECASE)
_STARTS = {
    "srt": re.compile(r"^[ \t]*\[?(\d{1,6}:)?\d{1,2}:\d{1,2}([,.]\d{1,9})?[ \t]*-->", re.MULTILINE),
    "sbv": re.compile(r"^\d{1,6}:\d{1,2}:\d{1,2}\.\d{1,9},\d{1,6}:\d{1,2}:\d{1,2}\.\d{1,9}[ \t\r]*$", re.MULTILINE),
    "ass": re.compile(r"^\ufeff?\[Script Info\]", re.IGNORECASE),
    "lrc": re.compile(r"^[ \t]*\[\d{1,4}:\d{1,2}[.:]\d{1,3}\]", re.MULTILINE),
}
_ASS_EVENT = re.compile(r"^\s*(?:Dialogue|Comment)\s*:", re.IGNORECASE)
_HEAD_CHARS = 2000  # in which the first cue of a file is looked for
CUE_FORMATS = ("srt", "vtt", "ass", "sbv", "lrc", "json")
SUFFIXES = {".srt": "srt", ".vtt": "vtt", ".ass": "ass", ".ssa": "ass", ".sbv": "sbv", ".lrc": "lrc"}


@dataclass
class FileCue:
    """A cue as it stands in the file. start, end: seconds; speaker: of formats that name it, else empty."""

    line: int
    start: float
    end: float
    lines: list[str]
    speaker: str = ""


@dataclass
class CueList:
    """The cues of a file. left_out: those that are no speech in their format, such as comments."""

    cues: list[FileCue]
    left_out: list[LeftOut] = field(default_factory=list)


def detect_cues(text: str) -> str | None:
    """The format of a text with cues; None if it has none."""
    if text.lstrip("\ufeff \t\r\n").startswith("WEBVTT"):
        return "vtt"
    head = text[:_HEAD_CHARS]
    return next((name for name, start in _STARTS.items() if start.search(head)), None)


def transcript_segments(value: Any) -> list[Any] | None:
    """The segments of a recognizer's transcript: of Whisper and whisperX, or of whisper.cpp; None for other values."""
    if not isinstance(value, Mapping) or "turns" in value or "messages" in value:
        return None
    segments = value.get("segments", value.get("transcription"))
    return segments if isinstance(segments, list) and all(isinstance(each, Mapping) for each in segments) else None


def is_transcript(data: object) -> bool:
    """Whether parsed JSON is a transcript: segments with times, in a recognizer's form or as a bare list."""
    segments = _segments(data)
    return bool(segments) and all("start" in each or "offsets" in each for each in segments)


def read_cue_file(path: str, text: str, cue_format: str) -> CueList:
    """The cues of a file, in its order.

    Raises:
        ScriptInvalid: a time line cannot be read, a cue ends before it begins, or there are no cues.
    """
    readers: dict[str, Callable[[str, str], CueList]] = {
        "srt": _read_time_lines,
        "vtt": _read_time_lines,
        "ass": _read_ass,
        "sbv": _read_sbv,
        "lrc": _read_lrc,
        "json": _read_transcript,
    }
    result = readers[cue_format](path, text)
    if not result.cues:
        raise invalid_line(path, 1, "there are no cues (00:00:01,000 --> 00:00:02,000)")
    for cue in result.cues:
        if cue.end < cue.start:
            raise invalid_line(path, cue.line, "the cue ends before it begins")
        cue.lines = [line.strip() for line in cue.lines if line.strip()]
    return result


def _read_time_lines(path: str, text: str) -> CueList:
    """SubRip, WebVTT and the lines that Whisper prints."""
    lines = _lines(text)
    is_vtt = detect_cues(text) == "vtt"
    if is_vtt:
        _blank_notes(lines)
    starts: list[tuple[int, re.Match[str]]] = []
    for index, line in enumerate(lines):
        if "-->" in line:
            times = _TIMES.match(line) or _PRINTED.match(line)
            if not times:
                example = "00:00:01,000 --> 00:00:02,000"
                raise invalid_line(path, index + 1, f"has --> but is no time line such as {example}")
            starts.append((index, times))
    before = [line for line in lines[: starts[0][0] if starts else 0] if line.strip() and not line.strip().isdecimal()]
    if before and not is_vtt:
        _LOG.warning("%s: the text before the first cue is left out: %.60s", path, before[0])
    cues = []
    for number, (index, times) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else len(lines)
        below = lines[index + 1 : end]
        is_printed = times.re is _PRINTED
        if number + 1 < len(starts) and not is_printed:
            while below and not below[-1]:
                below.pop()
            is_identifier = is_vtt and len(below) > 1 and not below[-2]  # a line with a space is text there
            if below and (below[-1].strip().isdecimal() or is_identifier):
                below.pop()  # the number or name of the next cue
        start, stop = _seconds(times.groups()[:4]), _seconds(times.groups()[4:8])
        cues.append(FileCue(index + 1, start, stop, [times[9], *below] if is_printed else below))
    return CueList(cues)


def _blank_notes(lines: list[str]) -> None:
    """Makes the lines of WebVTT's comments and styles empty: blocks that begin after an empty line."""
    in_note = False
    for index, line in enumerate(lines):
        if not line:
            in_note = False
        elif index and not lines[index - 1]:
            in_note = re.match(r"(NOTE|STYLE|REGION)\b", line) is not None
        if in_note:
            lines[index] = " "  # not empty, which would begin a block


def _read_ass(path: str, text: str) -> CueList:
    import pysubs2

    lines = [index for index, line in enumerate(_lines(text), 1) if _ASS_EVENT.match(line)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of margins and layers, which are not used
            events = list(pysubs2.SSAFile.from_string(text.lstrip("\ufeff"), format_="ass"))
    except Exception as error:  # whatever pysubs2 raises for a line that it cannot read
        raise invalid_line(path, lines[0] if lines else 1, f"is not a subtitle file in ASS: {error}") from error
    if len(events) != len(lines):
        message = (
            f"only {len(events)} of {len(lines)} events could be read; open and save the file in a subtitle editor"
        )
        raise invalid_line(path, lines[0] if lines else 1, message)
    result = CueList([])
    shown: set[tuple[int, int, str]] = set()  # the layers of one caption, such as its shadow, repeat its text
    for line, event in zip(lines, events, strict=True):
        words = event.plaintext
        if event.type != "Dialogue" or event.is_drawing:
            result.left_out.append(LeftOut(line, "a drawing" if event.is_drawing else "a comment"))
        elif (event.start, event.end, words) in shown:
            result.left_out.append(LeftOut(line, "a second layer of the same text"))
        else:
            shown.add((event.start, event.end, words))
            result.cues.append(
                FileCue(line, event.start / 1000, event.end / 1000, words.split("\n"), event.name.strip())
            )
    return result


def _read_sbv(path: str, text: str) -> CueList:
    cues: list[FileCue] = []
    for index, line in enumerate(_lines(text), 1):
        if times := _SBV_TIMES.match(line):
            cues.append(FileCue(index, _seconds(times.groups()[:4]), _seconds(times.groups()[4:]), []))
        elif cues:
            cues[-1].lines += line.split("[br]")
        elif line.strip():
            raise invalid_line(path, index, "expected the times of a cue, such as 0:00:01.000,0:00:02.000")
    return CueList(cues)


def _read_lrc(path: str, text: str) -> CueList:
    """Lines with their start; one ends where the next begins. A time without words ends the line before."""
    result = CueList([])
    for index, line in enumerate(_lines(text), 1):
        starts = []
        position = 0
        while time := _LRC_TIME.match(line, position):
            starts.append(_seconds(("", time[1], time[2], time[3])))
            position = time.end()
        words = line[position:]
        if starts:
            result.cues += [FileCue(index, start, start, [words]) for start in starts]
        elif _LRC_FIELD.match(line):
            result.left_out.append(LeftOut(index, "a field of the file"))
        elif words.strip() and result.cues:
            result.cues[-1].lines.append(words)
        elif words.strip():
            raise invalid_line(path, index, "expected the time of a line, such as [00:12.50]")
    result.cues.sort(key=lambda cue: cue.start)
    for cue, after in pairwise(result.cues):
        cue.end = after.start
    return result


def _segments(data: object) -> list[Any]:
    """The segments of a transcript, or of the bare list that `--subs json` writes."""
    if isinstance(data, list):
        return data if all(isinstance(each, Mapping) for each in data) else []
    return transcript_segments(data) or []


def _read_transcript(path: str, text: str) -> CueList:
    """The segments of a transcript in JSON. Their lines are not known; the number of a segment takes their place."""
    try:
        data = parse_json(text)
    except ValueError as error:
        raise invalid_line(path, getattr(error, "lineno", 1), f"is not JSON: {error}") from error
    cues = []
    for number, segment in enumerate(_segments(data), 1):
        try:
            if "offsets" in segment:  # whisper.cpp, in milliseconds
                start, end = segment["offsets"]["from"] / 1000, segment["offsets"]["to"] / 1000
            else:
                start, end = float(segment["start"]), float(segment["end"])
            words, speaker = segment["text"], segment.get("speaker")
            is_valid = isinstance(words, str) and 0 <= start < 1e7 and 0 <= end < 1e7
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            is_valid = False
        if not is_valid:
            raise invalid_line(path, 1, f"segment {number} has no start, end (seconds) and text")
        cues.append(FileCue(number, start, end, [words], "" if speaker is None else str(speaker)))
    return CueList(cues)


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds = (int(part or 0) for part in parts[:3])
    return hours * 3600 + minutes * 60 + seconds + float(f"0.{parts[3] or 0}")
