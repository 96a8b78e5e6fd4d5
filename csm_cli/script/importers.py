"""Dialogues in other formats as scripts: subtitles, transcripts, plays, texts of Dia, VibeVoice and Higgs Audio."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csm_cli.script.cue_files import CUE_FORMATS, SUFFIXES, detect_cues, is_transcript
from csm_cli.script.cues import read_cues
from csm_cli.script.dialogue_text import TAGS, TEXT_EXAMPLES, detect_dialogue, read_dialogue
from csm_cli.script.files import read_text
from csm_cli.script.imported import ImportedTurn, invalid_line
from csm_cli.script.limits import MAX_SPEAKERS
from csm_cli.storage.untrusted import parse_json

_HIGGS_MARK = re.compile(r"<\|(\w{1,64}?)_(start|end)\|>")

_JSON_START = re.compile(r"\s*(?:\{|\[\s*\{)")
_LAST_NUMBER = re.compile(r"(?<!\d)\d{1,9}$")


@dataclass(frozen=True)
class ImportedScript:
    """A dialogue in another format as the data of a script. lines: of the file, for each entry of `turns`."""

    data: dict[str, Any]
    lines: tuple[int, ...]


def convert(path: str, source_format: str | None = None, folder: Path = Path()) -> dict[str, Any]:
    """A dialogue in another format as the data of a script to be written to `folder`; `-` is standard input.

    source_format: dia, vibevoice, higgs, text, srt, vtt, ass, sbv, lrc or json; None to detect it.

    Raises:
        ScriptInvalid: the file cannot be read, or is not in this or any known format.
    """
    text = read_text(path)
    return import_text(path, text, source_format or _detect_format(path, text), folder).data


def import_text(path: str, text: str, source_format: str, folder: Path) -> ImportedScript:
    """As `convert`, of a text that has been read."""
    if source_format in CUE_FORMATS:
        turns = read_cues(path, text, source_format).turns
    elif source_format == "higgs" and _JSON_START.match(text):
        turns = _read_higgs_messages(path, text)
    else:
        turns = read_dialogue(path, text, source_format)
    context = []
    for turn in turns:
        if turn.audio:
            audio = Path(turn.audio)
            if not audio.is_absolute():
                audio = Path(os.path.relpath(Path(path).parent / audio, folder))
            context.append({"speaker": turn.speaker, "audio": audio.as_posix(), "text": turn.text})
    script: dict[str, Any] = {"csm": 1, "speakers": _speaker_ids(dict.fromkeys(turn.speaker for turn in turns))}
    if context:
        script["context"] = context
    entries = list(_script_turns([turn for turn in turns if not turn.audio]))
    script["turns"] = [entry for _, entry in entries]
    return ImportedScript(script, tuple(line for line, _ in entries))


def _speaker_ids(names: Iterable[str]) -> dict[str, dict[str, int]]:
    """The `speakers` section: names that are numbers have that id, others are numbered in order of their digits."""
    names = list(names)
    if all(name.isascii() and name.isdecimal() and int(name[:9]) < MAX_SPEAKERS for name in names):
        return {name: {"id": int(name)} for name in names}
    numbers = {name: _LAST_NUMBER.search(name) for name in names}
    if all(numbers.values()):
        names.sort(key=lambda name: int(numbers[name][0]))  # type: ignore[index]  # all have one
    return {name: {"id": number} for number, name in enumerate(names)}


def _detect_format(path: str, text: str) -> str:
    if suffix := SUFFIXES.get(Path(path).suffix.lower()):
        return suffix
    if _JSON_START.match(text):
        with suppress(ValueError):
            if is_transcript(parse_json(text)):
                return "json"
        return "higgs"
    if found := detect_cues(text) or detect_dialogue(text):
        return found
    known = ", ".join(f"{name} ({example})" for name, example in TEXT_EXAMPLES.items())
    raise invalid_line(path, 1, f"is in no known format: {known}, Higgs messages in JSON, {', '.join(CUE_FORMATS)}")


def _script_turns(turns: Sequence[ImportedTurn]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line and the entry of each of the `turns`; if times are known, with the silence or overlap between turns."""
    end = 0.0
    for turn in turns:
        if end:
            yield turn.line, {"speaker": turn.speaker, "text": turn.text, "offset": round(turn.start - end, 3)}
        else:
            if turn.start:
                yield turn.line, {"pause": round(turn.start, 3)}
            yield turn.line, {turn.speaker: turn.text}
        end = turn.end


def _read_higgs_messages(path: str, text: str) -> list[ImportedTurn]:
    """The user's messages are turns; one with the assistant's audio after it is recorded, which makes it context."""
    try:
        data = parse_json(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise invalid_line(path, line, f"is not JSON: {getattr(error, 'msg', error)}") from error
    messages = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(messages, list) or not all(isinstance(each, dict) and "role" in each for each in messages):
        raise invalid_line(path, 1, 'expected Higgs messages: {"messages": [{"role": ..., "content": ...}]}')
    turns: list[ImportedTurn] = []
    latest: list[ImportedTurn] = []  # of the user's last message; its audio may follow
    for message in messages:
        content = message.get("content")
        items = content if isinstance(content, list) else [content]
        texts = [str(each.get("text") or "") if isinstance(each, dict) else str(each or "") for each in items]
        spoken = _without_instructions(" ".join(texts)).strip()
        audio = [str(each["audio_url"]) for each in items if isinstance(each, dict) and each.get("audio_url")]
        if message["role"] == "user" and spoken:
            turns += latest
            is_tagged = TAGS["higgs"].match(spoken)
            untagged = [ImportedTurn(1, "SPEAKER0", " ".join(spoken.split()))]
            latest = read_dialogue(path, spoken, "higgs") if is_tagged else untagged
        elif message["role"] == "assistant" and audio and latest:
            turns.append(replace(latest[0], audio=audio[0]))
            latest = []
    return turns + latest


def _without_instructions(text: str) -> str:
    """A text of Higgs without `<|name_start|>...<|name_end|>`."""
    marks = list(_HIGGS_MARK.finditer(text))
    ends: dict[str, list[int]] = {}  # by name, the last first
    for index in reversed(range(len(marks))):
        if marks[index][2] == "end":
            ends.setdefault(marks[index][1], []).append(index)
    parts, position = [], 0
    for index, mark in enumerate(marks):
        if mark[2] == "end" or mark.start() < position:
            continue
        after = ends.get(mark[1], [])
        while after and after[-1] < index:
            after.pop()
        if after:
            parts.append(text[position : mark.start()])
            position = marks[after[-1]].end()
    return "".join((*parts, text[position:]))
