"""Turns written on the command line: `[0]Hello. [1]Hi!` and `[1]prev.wav=Hi there`."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csm_cli.errors import Diagnostic, ModelNotFound, ScriptInvalid, UsageError
from csm_cli.script.files import AudioLookup, read_transcript
from csm_cli.script.limits import MAX_PATH_CHARS, MAX_TEXT_CHARS
from csm_cli.script.source import quoted, text_fault, text_problem
from csm_cli.script.spoken_text import clean_text, is_speakable, pause_problem
from csm_cli.types import Recording, Turn
from csm_cli.voices.store import find_voice, is_name

_LOG = logging.getLogger(__name__)
_TAG = re.compile(r"(?<![A-Za-z0-9_\[])\[([0-9]{1,3})\]")  # anywhere but in a word, as in "a[1]"
_NAME_TAG = re.compile(r"\s*\[(?!pause )[^\W\d][^\[\]\n]{0,30}\](?=\s*\S)")


@dataclass(frozen=True)
class TaggedText:
    """The text of one speaker. start: its offset in the whole text."""

    speaker: int
    text: str
    start: int


def has_tags(text: str) -> bool:
    """Whether a text begins with a tag such as [0]."""
    return _TAG.match(text, len(text) - len(text.lstrip())) is not None


def split_tags(text: str, speaker: int) -> list[TaggedText]:
    """Splits a text at its `[n]` tags. A text that does not begin with one is all spoken by `speaker`, brackets too."""
    if not has_tags(text):
        if (tag := _TAG.search(text) if len(text) <= MAX_TEXT_CHARS else None) or (tag := _NAME_TAG.match(text)):
            hint = "a text with turns begins with a number, as in [0]Hi. [1]Hello!; names belong into a script"
            _LOG.warning("%s is spoken as part of the text; %s", tag[0].strip(), hint)
        return [TaggedText(speaker, text, 0)]
    tags = list(_TAG.finditer(text))
    ends = [*(tag.start() for tag in tags[1:]), len(text)]
    return [
        TaggedText(int(tag[1]), text[tag.end() : end].strip(), tag.start()) for tag, end in zip(tags, ends, strict=True)
    ]


def parse_say(text: str, speaker: int, name: str = "<text>", max_chars: int = MAX_TEXT_CHARS) -> tuple[Turn, ...]:
    """The turns of a text with `[n]` tags; without a tag, `speaker` says it all.

    name: of the file, for diagnostics. max_chars: of a turn.

    Raises:
        ScriptInvalid: a turn has no text, or one that cannot be spoken.
    """
    parts = [TaggedText(speaker, text, 0)] if len(text) > max_chars else split_tags(text, speaker)
    diagnostics = []
    turns = []
    line, line_start, counted = 1, 0, 0  # of the part before, so that each character is counted once
    for index, part in enumerate(parts):
        line += text.count("\n", counted, part.start)
        line_start, counted = max(line_start, text.rfind("\n", counted, part.start) + 1), part.start
        spoken = clean_text(part.text)
        fault = text_fault(spoken, max_chars)
        if fault:
            at = text.find(spoken[fault[0]], part.start) if fault[0] else part.start
            here = line + text.count("\n", part.start, at), at - text.rfind("\n", 0, at)
            diagnostics.append(Diagnostic(name, *here, f"turns[{index}].text", fault[1]))
        elif not is_speakable(spoken):
            shown = quoted(spoken.strip())
            problem = f"{shown} has nothing to speak; write words" if spoken.strip() else "expected text, got nothing"
            diagnostics.append(Diagnostic(name, line, part.start - line_start + 1, f"turns[{index}].text", problem))
        elif problem := pause_problem(spoken):
            diagnostics.append(Diagnostic(name, line, part.start - line_start + 1, f"turns[{index}].text", problem))
        turns.append(Turn(speaker=part.speaker, text=spoken.rstrip("\r\n"), name=str(part.speaker)))
    if diagnostics:
        raise ScriptInvalid(diagnostics)
    return tuple(turns)


def parse_context(flag: str, needs_text: bool = True) -> Turn:
    """A recorded turn from `[n]FILE=TEXT`; the first "=" whose left side is an existing file separates the two.

    needs_text: without it, `[n]FILE` is a turn with the text of the .txt file beside it, else with an empty one.

    Raises:
        UsageError: the flag is malformed.
        ScriptInvalid: the file is missing or is not audio, or the text is empty.
    """
    tag = _TAG.match(flag)
    if tag and not needs_text and (path := recording_path(flag[tag.end() :])):
        return _clip_turn(int(tag[1]), path)
    splits = [match.start() for match in re.finditer("=", flag)] if tag else []
    if tag is None or not splits or splits[0] == tag.end():
        hint = "; --transcribe recognizes the words of [n]FILE" if tag and needs_text else ""
        raise UsageError(f"--context takes '[n]FILE=TEXT', such as '[1]prev.wav=Hi there'; got {flag!r}{hint}")
    files = AudioLookup(Path())
    splits = [split for split in splits if split - tag.end() <= MAX_PATH_CHARS] or splits[:1]
    split = next((each for each in splits if files.find(flag[tag.end() : each])), splits[0])
    name, text = flag[tag.end() : split], flag[split + 1 :]
    return _recorded_turn(int(tag[1]), files, name, text)


def _recorded_turn(speaker: int, files: AudioLookup, name: str, text: str | None) -> Turn:
    """text: None for a clip whose words are recognized later. Raises ScriptInvalid as `parse_context`."""
    path = files.find(name)
    if path is None:
        raise ScriptInvalid([Diagnostic("--context", 0, 0, "audio", f"no such file: {name}")])
    problem = files.problem(path)
    if not problem and text is not None:
        problem = text_problem(text) if text.strip() else "expected the text after =, got nothing"
    if problem:
        raise ScriptInvalid([Diagnostic(name, 0, 0, "context", problem)])
    return Turn(speaker=speaker, text=clean_text(text or ""), name=str(speaker), recording=Recording(path))


def _clip_turn(speaker: int, path: Path) -> Turn:
    """A recording with the text of the .txt file beside it, else with an empty one."""
    transcript = path.with_suffix(".txt")
    text = read_transcript(transcript).strip() if transcript.exists() else None
    return _recorded_turn(speaker, AudioLookup(Path()), str(path), text)


def parse_voice(voice: str, speaker: int, needs_text: bool = True) -> Turn:
    """The context turn that gives `speaker` a saved voice, or the voice of a recording: `NAME` or `FILE[=TEXT]`.

    needs_text: without it, a recording without a transcript is a turn with an empty text.

    Raises:
        ModelNotFound: no such file, or no transcript for it.
        VoiceNotFound: neither a file nor a saved voice.
        ScriptInvalid: the file is not audio, or its transcript cannot be used.
    """
    path = recording_path(voice)
    if path is None and "=" in voice:
        return parse_context(f"[{speaker}]{voice}")
    if path is None and is_name(voice):
        return find_voice(voice).turn(speaker, str(speaker))
    if path is None:
        raise ModelNotFound(
            f"no voice {voice!r}; name a recording, with its transcript in a .txt beside it or as FILE=TEXT"
        )
    transcript = path.with_suffix(".txt")
    if needs_text and not transcript.exists():
        hint = "beside it, give FILE=TEXT or add --transcribe"
        raise ModelNotFound(f"{path}: its transcript is missing; write it to {transcript.name} {hint}")
    return _clip_turn(speaker, path)


def recording_path(voice: str) -> Path | None:
    """The file that a voice names; None if it is not a file."""
    with suppress(OSError, RuntimeError):  # a name too long for a file; unknown user in ~user
        path = Path(voice).expanduser()
        return path if path.is_file() else None
    return None
