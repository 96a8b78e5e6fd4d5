"""SubRip and WebVTT as turns: who says what, and when."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.text_lines import TextLine

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[,.](\d{3})"
_TIMES = re.compile(rf"^\s*{_TIME}[ \t]+-->[ \t]+{_TIME}(?:[ \t].*)?$")
_VOICE = re.compile(r"^<v(?:\.[^\s>]*)?[ \t]+([^>]+)>")
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|<\d[\d:.]*>|\{\\[^}]*\}")
_NAMED = re.compile(r"^([^\W\d_][^:<>]{0,30}):\s+(?=\S)")
_NOBODY = "speaker 0"
_CLOSE = 0.5  # seconds between two cues of one sentence
_LONGEST = 200  # characters of cues joined to one turn
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")  # noqa: RUF001


def read_cues(path: str, text: str) -> list[TextLine]:
    """The turns of subtitles in the order of their times; a sentence cut into several cues is one turn.

    Who speaks is known from WebVTT's voices, and from names before the text ("ANA: Hello.") where they are in capitals
    or every cue has one.

    Raises:
        ScriptInvalid: there are no cues, or one without a text.
    """
    cues = sorted(_cues(path, text), key=lambda cue: cue.start or 0.0)
    if not cues:
        raise ScriptInvalid([Diagnostic(path, 1, 1, "", "there are no cues (00:00:01,000 --> 00:00:02,000)")])
    named = [_NAMED.match(cue.text) for cue in cues]
    everywhere = all(named)
    lines = [
        replace(cue, speaker=name[1], text=cue.text[name.end() :].removeprefix("- "))
        if name and not cue.speaker and (everywhere or name[1].isupper())
        else cue
        for cue, name in zip(cues, named, strict=True)
    ]
    return _joined([replace(line, speaker=line.speaker or _NOBODY) for line in lines])


def _cues(path: str, text: str) -> Iterator[TextLine]:
    rows = text.splitlines()
    at = 0
    while at < len(rows):
        times = _TIMES.match(rows[at])
        at += 1
        if not times:
            continue
        number, words = at, []
        while at < len(rows) and rows[at].strip():
            words.append(rows[at].strip())
            at += 1
        yield _cue(path, number, times, " ".join(words))


def _cue(path: str, number: int, times: re.Match[str], words: str) -> TextLine:
    start, end = (_seconds(times.groups()[at : at + 4]) for at in (0, 4))
    voice = _VOICE.match(words)
    text = " ".join(html.unescape(_MARKUP.sub("", words)).split()).removeprefix("- ")
    trouble = "expected text below the times, got nothing" if not text else ""
    if end <= start:
        trouble = "the cue ends before it begins"
    if trouble:
        raise ScriptInvalid([Diagnostic(path, number, 1, "", trouble)])
    return TextLine(number, html.unescape(voice[1]).strip() if voice else "", text, start, end)


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in parts)
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _joined(lines: Sequence[TextLine]) -> list[TextLine]:
    """Cues that go on in the middle of a sentence of the same speaker, made one."""
    turns: list[TextLine] = []
    for line in lines:
        last = turns[-1] if turns else None
        if last and _goes_on(last, line):
            turns[-1] = replace(last, text=f"{last.text} {line.text}", end=max(last.end or 0.0, line.end or 0.0))
        else:
            turns.append(line)
    return turns


def _goes_on(last: TextLine, line: TextLine) -> bool:
    close = (line.start or 0.0) - (last.end or 0.0) <= _CLOSE
    short = len(last.text) + len(line.text) < _LONGEST
    return last.speaker == line.speaker and close and short and not _SENTENCE_END.search(last.text)
