"""Cues of SubRip and WebVTT as timed turns, with every irregularity that files have; each cue is accounted for.

SubRip has no standard: cues end where the next time line begins, so that blank lines in a text, or none between two
cues, lose and add nothing. WebVTT: https://www.w3.org/TR/webvtt1/
"""

from __future__ import annotations

import html
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.files import STDIN

_LOG = logging.getLogger(__name__)

_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})(?:[,.](\d{1,9}))?"
_TIMES = re.compile(rf"^\s*{_TIME}[ \t]*-->[ \t]*{_TIME}(?:[ \t].*)?$")
CUE_START = re.compile(r"^[ \t]*(\d{1,6}:)?\d{1,2}:\d{1,2}([,.]\d{1,9})?[ \t]*-->", re.MULTILINE)
# No part of these can match in two ways, so that they take time in proportion to the text.
_VOICE = re.compile(r"^<v(?:\.[^\s>]*)?[ \t]+([^\s>][^>]*)>")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
_BRACKETED = re.compile(
    r"^\[([^\]\[]{1,40})\][ \t]*:[ \t]*(?=\S)|^[\[(]((?i:speaker|spk)[ _]?\d{1,4})[\])][ \t]*:?[ \t]*(?=\S)"
)
_NAME = re.compile(r"^(\w[^:<>\[\]()]{0,60}):\s+(?=\S)")
_SOUND = re.compile(r"^[\[(*♪♫][^\[\]()]*[\])*♪♫]$|^[♪♫\s]+$")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")  # noqa: RUF001
_DEFAULT_SPEAKER, _OTHER_SPEAKER = "speaker 0", "speaker 1"
MAX_CUE_GAP = 0.5  # seconds between two cues of one sentence
MAX_JOINED_CHARS = 200  # of the cues of one turn
_MAX_REPEATED_LINES = 8  # of a caption that rolls up; they show two or three
_SHOWN = 5  # cues left out that a message names


@dataclass(frozen=True)
class ImportedTurn:
    """A turn of a file. line: its number; start, end: seconds, both 0 if unknown; audio: file of a recorded turn."""

    line: int
    speaker: str
    text: str
    start: float = 0.0
    end: float = 0.0
    audio: str = ""


@dataclass
class CueFile:
    """A file of subtitles. found: its cues; left_out: the line and the reason of those that are not spoken.

    repeated: cues whose text earlier ones had, as in captions that roll up. Every other cue is in one turn, or in two
    where two speakers share it.
    """

    turns: list[ImportedTurn]
    found: int = 0
    repeated: int = 0
    left_out: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Block:
    """A cue as it stands in the file."""

    line: int
    start: float
    end: float
    lines: list[str]
    is_repeated: bool = False


def invalid_line(path: str, line: int, message: str) -> ScriptInvalid:
    """The error of a line of a file that is converted."""
    return ScriptInvalid([Diagnostic(STDIN if path == "-" else path, line, 1, "", message)])


def read_cues(path: str, text: str) -> CueFile:
    """The cues of a file as turns, ordered by time; the cues of one sentence are joined to one turn.

    The speaker is a WebVTT voice; a label as `[SPEAKER_00]:` or `(speaker 1)`; or a name as `ANA:` or `>> Ana:` if it
    is in capitals, if several cues have it, or if every cue has one. A cue without a label continues the speaker before
    it.

    Raises:
        ScriptInvalid: a line with `-->` is no time line, a cue ends before it begins, or there are no cues with a text.
    """
    blocks = _blocks(path, text)
    if not blocks:
        raise invalid_line(path, 1, "there are no cues (00:00:01,000 --> 00:00:02,000)")
    result = CueFile([], len(blocks))
    if _is_rolling(blocks):
        result.repeated = _remove_repeated(blocks)
    spoken: list[ImportedTurn] = []
    for block in blocks:
        if block.is_repeated:
            continue
        lines = [line for line in block.lines if line and not _SOUND.match(line)]
        if not lines:
            result.left_out.append((block.line, "a sound" if any(block.lines) else "no text"))
            continue
        spoken += _dash_pair(block, lines) or [_one(block, lines)]
    names = _names(path, [each.text for each in spoken if not each.speaker])
    previous = _DEFAULT_SPEAKER
    labelled: list[ImportedTurn] = []
    for each in sorted(spoken, key=lambda spoken: spoken.start):
        speaker, words = each.speaker, each.text
        if not speaker and (label := _BRACKETED.match(words)):
            speaker, words = label[1] or label[2], words[label.end() :]
        elif not speaker and (name := _NAME.match(words)) and (names is None or name[1] in names):
            speaker, words = name[1], words[name.end() :]
        previous = speaker or previous
        labelled.append(replace(each, speaker=previous, text=words.removeprefix("- ")))
    result.turns = _joined(labelled)
    if not result.turns:
        raise invalid_line(path, blocks[0].line, "expected text below the times, got nothing to speak")
    if result.left_out or result.repeated:
        shown = ", ".join(f"line {line}: {reason}" for line, reason in result.left_out[:_SHOWN])
        shown += f" and {len(result.left_out) - _SHOWN} more" if len(result.left_out) > _SHOWN else ""
        parts = [f"{len(result.left_out)} left out ({shown})"] if shown else []
        parts += [f"{result.repeated} repeat the text before"] if result.repeated else []
        _LOG.warning("%s: of %d cues %s", path, result.found, ", ".join(parts))
    return result


def _blocks(path: str, text: str) -> list[_Block]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_vtt = text.lstrip("\ufeff \t\r\n").startswith("WEBVTT")
    if is_vtt:
        _blank_notes(lines)
    starts: list[tuple[int, re.Match[str]]] = []
    for index, line in enumerate(lines):
        if "-->" in line:
            times = _TIMES.match(line)
            if not times:
                example = "00:00:01,000 --> 00:00:02,000"
                raise invalid_line(path, index + 1, f"has --> but is no time line such as {example}")
            starts.append((index, times))
    before = [line for line in lines[: starts[0][0] if starts else 0] if line.strip() and not line.strip().isdecimal()]
    if before and not is_vtt:
        _LOG.warning("%s: the text before the first cue is left out: %.60s", path, before[0])
    blocks = []
    for number, (index, times) in enumerate(starts):
        end = starts[number + 1][0] if number + 1 < len(starts) else len(lines)
        below = lines[index + 1 : end]
        if number + 1 < len(starts):
            while below and not below[-1]:
                below.pop()
            is_identifier = is_vtt and len(below) > 1 and not below[-2]  # a line with a space is text there
            if below and (below[-1].strip().isdecimal() or is_identifier):
                below.pop()  # the number or name of the next cue
        start, stop = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
        if stop < start:
            raise invalid_line(path, index + 1, "the cue ends before it begins")
        blocks.append(_Block(index + 1, start, stop, [line.strip() for line in below if line.strip()]))
    return blocks


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


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds = (int(part or 0) for part in parts[:3])
    return hours * 3600 + minutes * 60 + seconds + float(f"0.{parts[3] or 0}")


def _is_rolling(blocks: Sequence[_Block]) -> bool:
    """Whether most cues begin with the last line of the cue before, as captions of YouTube do."""
    pairs = [(one, two) for one, two in pairwise(blocks) if one.lines and two.lines]
    repeats = sum(_plain(one.lines[-1]) == _plain(two.lines[0]) and two.start - one.end < 0.1 for one, two in pairs)
    return len(pairs) > 1 and 2 * repeats > len(pairs)


def _remove_repeated(blocks: Sequence[_Block]) -> int:
    """Removes the lines that the cue before had too; returns how many cues have no others."""
    before: list[str] = []
    repeated = 0
    for block in blocks:
        plain = [_plain(line) for line in block.lines]
        count = next((n for n in range(min(len(plain), _MAX_REPEATED_LINES), 0, -1) if before[-n:] == plain[:n]), 0)
        block.lines = block.lines[count:]
        block.is_repeated = bool(plain) and not block.lines
        repeated += block.is_repeated
        before = plain or before
    return repeated


def _plain(line: str) -> str:
    return " ".join(_unescape(_MARKUP.sub("", line)).split())


def _unescape(text: str) -> str:
    """HTML references as characters; as written where a number has thousands of digits, which int() refuses."""
    try:
        return html.unescape(text)
    except ValueError:
        return text


def _one(block: _Block, lines: Sequence[str]) -> ImportedTurn:
    content = " ".join(lines)
    voice = _VOICE.match(content)
    text = _plain(content).removeprefix(">>").lstrip("> ").removeprefix("- ")
    return ImportedTurn(block.line, _unescape(voice[1]).strip() if voice else "", text, block.start, block.end)


def _dash_pair(block: _Block, lines: Sequence[str]) -> list[ImportedTurn]:
    """The two speakers of lines that begin with a dash; empty for other cues. The time is parted by their lengths."""
    words = [_plain(line) for line in lines]
    if len(words) != 2 or not all(re.match(r"[-–—]\s*\w", each) for each in words):  # noqa: RUF001
        return []
    words = [each.lstrip("-–— ") for each in words]  # noqa: RUF001
    middle = block.start + (block.end - block.start) * len(words[0]) / sum(map(len, words))
    named = [_NAME.match(each) for each in words]
    speakers = ["", ""] if all(named) else [_DEFAULT_SPEAKER, _OTHER_SPEAKER]
    return [
        ImportedTurn(block.line, speakers[0], words[0], block.start, middle),
        ImportedTurn(block.line, speakers[1], words[1], middle, block.end),
    ]


def _names(path: str, texts: Sequence[str]) -> set[str] | None:
    """Which words before a colon are speakers; None for all."""
    matches = [_NAME.match(text) for text in texts if not _BRACKETED.match(text)]
    if matches and all(matches):
        return None
    counts = Counter(match[1] for match in matches if match and not match[1][0].isdigit())
    names = {name for name, count in counts.items() if count > 1 or name.isupper()}
    others = [name for name in counts if name not in names]
    if others:
        shown = ", ".join(others[:_SHOWN])
        _LOG.warning("%s: spoken with the text, though they may be speakers: %s", path, shown)
    return names


def _joined(spoken: Sequence[ImportedTurn]) -> list[ImportedTurn]:
    turns: list[ImportedTurn] = []
    for each in spoken:
        last = turns[-1] if turns else None
        if (
            last
            and last.speaker == each.speaker
            and each.start - last.end <= MAX_CUE_GAP
            and len(last.text) + len(each.text) < MAX_JOINED_CHARS
            and not _SENTENCE_END.search(last.text)
        ):
            turns[-1] = replace(last, text=f"{last.text} {each.text}", end=max(last.end, each.end))
        else:
            turns.append(each)
    return turns
