"""Turns written on a command line: `[0]Hello. [1]Hi!` and `[1]prev.wav=Hi there`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from csm_cli.errors import Diagnostic, ScriptInvalid, UsageError
from csm_cli.script.audio_lookup import AudioLookup
from csm_cli.script.source import MAX_TEXT_CHARS, text_problem
from csm_cli.types import Recording, Turn

_TAG = re.compile(r"(?:^|(?<=\s))\[([0-9]{1,3})\]")


@dataclass(frozen=True)
class TaggedText:
    """What one speaker says of a text, and where in the text it begins."""

    speaker: int
    text: str
    start: int


def split_tags(text: str, speaker: int) -> list[TaggedText]:
    """A text at its tags. One that begins with no `[n]` is all `speaker`'s, and what it holds in brackets is spoken."""
    lead = len(text) - len(text.lstrip())
    if not _TAG.match(text, lead):
        return [TaggedText(speaker, text, 0)]
    tags = list(_TAG.finditer(text))
    ends = [tag.start() for tag in tags[1:]] + [len(text)]
    return [
        TaggedText(int(tag[1]), text[tag.end() : end].strip(), tag.start()) for tag, end in zip(tags, ends, strict=True)
    ]


def parse_say(text: str, speaker: int) -> tuple[Turn, ...]:
    """The turns of a text, each under the number the model reads.

    Raises:
        ScriptInvalid: a turn has no text, or one that cannot be spoken.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ScriptInvalid([Diagnostic("<text>", 1, 1, "", text_problem(text))])
    parts = split_tags(text, speaker)
    diagnostics = [
        Diagnostic("<text>", *_place(text, part.start), f"turns[{index}].text", trouble)
        for index, part in enumerate(parts)
        if (trouble := _trouble(part.text, "expected text, got nothing"))
    ]
    if diagnostics:
        raise ScriptInvalid(diagnostics)
    return tuple(Turn(speaker=part.speaker, text=part.text.rstrip("\r\n"), name=str(part.speaker)) for part in parts)


def parse_context(flag: str) -> Turn:
    """A past turn from `[n]FILE=TEXT`; of several "=", the first whose left side is a file counts.

    Raises:
        UsageError: not in this form.
        ScriptInvalid: the file is missing or is not audio, or the text is empty.
    """
    tag = _TAG.match(flag)
    splits = [match.start() for match in re.finditer("=", flag)] if tag else []
    if tag is None or not splits or splits[0] == tag.end():
        raise UsageError(f"--context takes '[n]FILE=TEXT', such as '[1]prev.wav=Hi there'; got {flag!r}")
    files = AudioLookup(Path())
    pairs = [(flag[tag.end() : split], flag[split + 1 :]) for split in splits]
    found = ((files.find(name), name, text) for name, text in pairs)
    path, name, text = next((each for each in found if each[0]), (None, *pairs[0]))
    if path is None:
        raise ScriptInvalid([Diagnostic("--context", 0, 0, "audio", f"no such file: {name}")])
    trouble = files.trouble(path) or _trouble(text, "expected its text after the =, got nothing")
    if trouble:
        raise ScriptInvalid([Diagnostic(name, 0, 0, "context", trouble)])
    return Turn(speaker=int(tag[1]), text=text, name=tag[1], recording=Recording(path))


def _trouble(text: str, nothing: str) -> str:
    return text_problem(text) if text.strip() else nothing


def _place(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - before.rfind("\n")
