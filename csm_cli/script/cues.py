"""Cues of subtitles as turns: speakers from labels, captions that roll up, sentences over several cues.

Each cue is accounted for: it is in a turn, it repeats the text before, or it is left out for a reason.
"""

from __future__ import annotations

import html
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from csm_cli.script.cue_files import FileCue, read_cue_file
from csm_cli.script.imported import MAX_SHOWN, ImportedTurn, LeftOut, invalid_line, list_left_out
from csm_cli.script.spoken_text import PAUSE

_LOG = logging.getLogger(__name__)

# No part of these can match in two ways, so that they take time in proportion to the text.
_VOICE = re.compile(r"^<v(?:\.[^\s>]*)?[ \t]+([^\s>][^>]*)>")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
_BRACKETED = re.compile(
    r"^\[([^\]\[]{1,40})\][ \t]*:[ \t]*(?=\S)|^[\[(]((?i:speaker|spk)[ _]?\d{1,4})[\])][ \t]*:?[ \t]*(?=\S)"
)
_NAME = re.compile(r"^(\w[^:<>\[\]()]{0,60}):\s+(?=\S)")
_SOUND = re.compile(r"^[\[(*♪♫][^\[\]()]*[\])*♪♫]$|^[♪♫\s]+$")
_FIRST_PAUSE = re.compile(rf"{PAUSE.pattern}\s*(?=\S)")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")  # noqa: RUF001
_DEFAULT_SPEAKER, _OTHER_SPEAKER = "speaker 0", "speaker 1"
MAX_CUE_GAP = 0.5  # seconds between two cues of one sentence
MAX_JOINED_CHARS = 200  # of the cues of one turn
_MAX_REPEATED_LINES = 8  # of a caption that rolls up; they show two or three


@dataclass
class CueFile:
    """A file of subtitles. found: its cues; left_out: the line and the reason of those that are not spoken.

    repeated: cues whose text earlier ones had, as in captions that roll up. Every other cue is in one turn, or in two
    where two speakers share it.
    """

    turns: list[ImportedTurn]
    found: int = 0
    repeated: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


def read_cues(path: str, text: str, cue_format: str) -> CueFile:
    """The cues of a file as turns, ordered by time; the cues of one sentence are joined to one turn.

    The speaker is a WebVTT voice; a label as `[SPEAKER_00]:` or `(speaker 1)`; or a name as `ANA:` or `>> Ana:` if it
    is in capitals, if several cues have it, or if every cue has one. A cue without a label continues the speaker before
    it.

    Raises:
        ScriptInvalid: a line with `-->` is no time line, a cue ends before it begins, or there are no cues with a text.
    """
    file = read_cue_file(path, text, cue_format)
    result = CueFile([], len(file.cues) + len(file.left_out), left_out=file.left_out)
    cues, repeats = file.cues, set[int]()
    if _is_rolling(cues):
        repeats = _remove_repeated(cues)
        result.repeated = len(repeats)
    spoken: list[tuple[FileCue, list[str]]] = []
    for number, cue in enumerate(cues):
        lines = [line for line in cue.lines if PAUSE.fullmatch(line) or not _SOUND.match(line)]
        only_pauses = bool(lines) and all(map(PAUSE.fullmatch, lines))  # its time stays, between other cues
        if lines and not only_pauses and number not in repeats:
            spoken.append((cue, _with_pauses(lines)))
        elif number not in repeats:
            reason = "a pause" if only_pauses else "a sound" if cue.lines else "no text"
            result.left_out.append(LeftOut(cue.line, reason))
    unlabelled = (lines for cue, lines in spoken if not cue.speaker)
    names = _names(path, [[_split_pause(_words(line))[1] for line in lines] for lines in unlabelled])
    previous = _DEFAULT_SPEAKER
    labelled: list[ImportedTurn] = []
    for cue, lines in sorted(spoken, key=lambda each: each[0].start):
        for each in _dash_pair(cue, lines, names) or _parts(cue, lines, names):
            previous = each.speaker or previous
            labelled.append(replace(each, speaker=previous))
    result.turns = _joined(labelled)
    if not result.turns:
        raise invalid_line(path, cues[0].line, "expected text below the times, got nothing to speak")
    if result.left_out or result.repeated:
        parts = [f"{len(result.left_out)} left out ({list_left_out(result.left_out)})"] if result.left_out else []
        parts += [f"{result.repeated} repeat the text before"] if result.repeated else []
        _LOG.warning("%s: of %d cues %s", path, result.found, ", ".join(parts))
    return result


def _with_pauses(lines: Sequence[str]) -> list[str]:
    """Lines of which none is a pause alone: it begins the next line, or ends the last."""
    joined, before = list[str](), ""
    for line in lines:
        if PAUSE.fullmatch(line):
            before += f"{line} "
        else:
            joined.append(before + line)
            before = ""
    return [*joined[:-1], f"{joined[-1]} {before}".rstrip()]


def _is_rolling(cues: Sequence[FileCue]) -> bool:
    """Whether most cues begin with the last line of the cue before, as captions of YouTube do."""
    pairs = [(one, two) for one, two in pairwise(cues) if one.lines and two.lines]
    repeats = sum(_plain(one.lines[-1]) == _plain(two.lines[0]) and two.start - one.end < 0.1 for one, two in pairs)
    return len(pairs) > 1 and 2 * repeats > len(pairs)


def _remove_repeated(cues: Sequence[FileCue]) -> set[int]:
    """Removes the lines that the cue before had too; returns the indices of the cues that have no others."""
    before: list[str] = []
    repeats = set()
    for index, cue in enumerate(cues):
        plain = [_plain(line) for line in cue.lines]
        count = next((n for n in range(min(len(plain), _MAX_REPEATED_LINES), 0, -1) if before[-n:] == plain[:n]), 0)
        cue.lines = cue.lines[count:]
        if plain and not cue.lines:
            repeats.add(index)
        before = plain or before
    return repeats


def _plain(line: str) -> str:
    return " ".join(_unescape(_MARKUP.sub("", line)).split())


def _unescape(text: str) -> str:
    """HTML references as characters; as written where a number has thousands of digits, which int() refuses."""
    try:
        return html.unescape(text)
    except ValueError:
        return text


def _words(line: str) -> str:
    return _plain(line).removeprefix(">>").lstrip("> ").removeprefix("- ")


def _split_label(words: str, names: set[str]) -> tuple[str, str]:
    """The speaker that a line begins with, else an empty text, and the words after. Pauses before a label stay."""
    pause, words = _split_pause(words)
    if label := _BRACKETED.match(words):
        return label[1] or label[2], pause + words[label.end() :].removeprefix("- ")
    if (name := _NAME.match(words)) and name[1] in names:
        return name[1], pause + words[name.end() :].removeprefix("- ")
    return "", pause + words


def _split_pause(words: str) -> tuple[str, str]:
    """The pause that a line begins with, and the words after it."""
    pause = _FIRST_PAUSE.match(words)
    return (words[: pause.end()], words[pause.end() :]) if pause else ("", words)


def _parts(cue: FileCue, lines: Sequence[str], names: set[str]) -> list[ImportedTurn]:
    """A turn for each label in a cue, with a share of its time; a cue without one is one turn."""
    parts: list[tuple[str, list[str]]] = []
    content = " ".join(lines)
    voice = _VOICE.match(content)
    if cue.speaker or voice:
        speaker = cue.speaker or (_unescape(voice[1]).strip() if voice else "")
        return [ImportedTurn(cue.line, speaker, _words(content), cue.start, cue.end)]
    for line in map(_words, lines):
        speaker, words = _split_label(line, names)
        if speaker or not parts:
            parts.append((speaker, []))
        parts[-1][1].append(words)
    return _timed(cue, [(speaker, " ".join(words)) for speaker, words in parts])


def _dash_pair(cue: FileCue, lines: Sequence[str], names: set[str]) -> list[ImportedTurn]:
    """The two speakers of lines that begin with a dash; empty for other cues."""
    words = [_plain(line) for line in lines]
    if cue.speaker or len(words) != 2 or not all(re.match(r"[-–—]\s*\w", each) for each in words):  # noqa: RUF001
        return []
    parts = [_split_label(each.lstrip("-–— "), names) for each in words]  # noqa: RUF001
    others = (_DEFAULT_SPEAKER, _OTHER_SPEAKER)
    return _timed(cue, [(name or other, words) for (name, words), other in zip(parts, others, strict=True)])


def _timed(cue: FileCue, parts: Sequence[tuple[str, str]]) -> list[ImportedTurn]:
    """Turns of speakers and words that share the time of a cue by their lengths."""
    total = sum(len(words) for _, words in parts)
    turns, start = [], cue.start
    for speaker, words in parts:
        end = start + (cue.end - cue.start) * len(words) / (total or 1)
        turns.append(ImportedTurn(cue.line, speaker, words, start, end))
        start = end
    return turns


def _names(path: str, cues: Sequence[Sequence[str]]) -> set[str]:
    """Which words before a colon are speakers, of the lines of each cue."""
    first = [match[1] for lines in cues if not _BRACKETED.match(lines[0]) and (match := _NAME.match(lines[0]))]
    is_everywhere = len(first) == sum(not _BRACKETED.match(lines[0]) for lines in cues)
    found = (_NAME.match(line) for lines in cues for line in lines if not _BRACKETED.match(line))
    counts = Counter(match[1] for match in found if match and not match[1][0].isdigit())
    names = {name for name, count in counts.items() if count > 1 or name.isupper()}
    if is_everywhere:
        names |= set(first)
    others = [name for name in counts if name not in names]
    if others:
        shown = ", ".join(others[:MAX_SHOWN])
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
