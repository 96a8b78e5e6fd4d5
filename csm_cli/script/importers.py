"""Dialogues in other formats as scripts: Dia, VibeVoice, Higgs Audio, SubRip and WebVTT."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csm_cli.script.cues import CUE_START, ImportedTurn, invalid_line, read_cues
from csm_cli.script.files import read_text
from csm_cli.storage.untrusted import parse_json

_TAGS = {
    "dia": re.compile(r"\[(S\d{1,3})\]"),
    "higgs": re.compile(r"\[(SPEAKER_?\d{1,3})\]", re.IGNORECASE),
    "vibevoice": re.compile(r"^[ \t]*(Speaker[ \t]+\d{1,3})[ \t]*:", re.IGNORECASE | re.MULTILINE),
}
_EXAMPLES = {"dia": "[S1] Hello.", "higgs": "[SPEAKER0] Hello.", "vibevoice": "Speaker 1: Hello."}
_HIGGS_MARK = re.compile(r"<\|(\w{1,64}?)_(start|end)\|>")

_LAST_NUMBER = re.compile(r"(?<!\d)\d{1,9}$")


def convert(path: str, source_format: str | None = None, folder: Path = Path()) -> dict[str, Any]:
    """A dialogue in another format as the data of a script to be written to `folder`; `-` is standard input.

    source_format: dia, vibevoice, higgs, srt or vtt; None to detect it.

    Raises:
        ScriptInvalid: the file cannot be read, or is not in this or any known format.
    """
    text = read_text(path)
    source_format = source_format or _detect_format(path, text)
    if source_format in ("srt", "vtt"):
        turns = read_cues(path, text).turns
    elif source_format == "higgs" and text.lstrip().startswith(("{", "[{")):
        turns = _read_higgs_messages(path, text)
    else:
        turns = _read_tagged(path, text, source_format)
    names = list(dict.fromkeys(turn.speaker for turn in turns))
    numbers = {name: _LAST_NUMBER.search(name) for name in names}
    if all(numbers.values()):
        names.sort(key=lambda name: int(numbers[name][0]))  # type: ignore[index]  # all have one
    script: dict[str, Any] = {"csm": 1, "speakers": {name: {"id": number} for number, name in enumerate(names)}}
    context = []
    for turn in turns:
        if turn.audio:
            audio = Path(turn.audio)
            if not audio.is_absolute():
                audio = Path(os.path.relpath(Path(path).parent / audio, folder))
            context.append({"speaker": turn.speaker, "audio": audio.as_posix(), "text": turn.text})
    if context:
        script["context"] = context
    script["turns"] = list(_script_turns([turn for turn in turns if not turn.audio]))
    return script


def _detect_format(path: str, text: str) -> str:
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix in ("srt", "vtt"):
        return suffix
    if text.lstrip().startswith("WEBVTT"):
        return "vtt"
    if CUE_START.search(text[:2000]):
        return "srt"
    if text.lstrip().startswith(("{", "[{")):
        return "higgs"
    starts = {name: match.start() for name, tag in _TAGS.items() if (match := tag.search(text))}
    if starts:
        return min(starts, key=lambda name: starts[name])
    known = ", ".join(f"{name} ({example})" for name, example in _EXAMPLES.items())
    raise invalid_line(path, 1, f"is in no known format: {known}, Higgs messages in JSON, srt, vtt")


def _script_turns(turns: Sequence[ImportedTurn]) -> Iterator[dict[str, Any]]:
    """Entries of `turns`; if times are known, with the silence or overlap between turns."""
    end = 0.0
    for turn in turns:
        if end:
            yield {"speaker": turn.speaker, "text": turn.text, "offset": round(turn.start - end, 3)}
        else:
            if turn.start:
                yield {"pause": round(turn.start, 3)}
            yield {turn.speaker: turn.text}
        end = turn.end


def _read_tagged(path: str, text: str, source_format: str) -> list[ImportedTurn]:
    """The turns of a text in which a tag with the speaker starts each turn."""
    tags = list(_TAGS[source_format].finditer(text))
    if not tags or text[: tags[0].start()].strip():
        got = text.split("\n", 1)[0][:40]
        raise invalid_line(path, 1, f"expected a turn such as {_EXAMPLES[source_format]!r}, got {got!r}")
    turns = []
    line, counted = 1, 0  # lines are counted on from the tag before
    for tag, end in zip(tags, [*(tag.start() for tag in tags[1:]), len(text)], strict=True):
        line, counted = line + text.count("\n", counted, tag.start()), tag.start()
        speaker, spoken = " ".join(tag[1].split()), " ".join(text[tag.end() : end].split())
        turns.append(ImportedTurn(line, speaker, spoken))
    if source_format == "dia" and not turns[-1].text:
        turns.pop()  # Dia recommends a last tag without text
    for turn in turns:
        if not turn.text:
            raise invalid_line(path, turn.line, f"expected text after {turn.speaker}, got nothing")
    return turns


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
            is_tagged = _TAGS["higgs"].match(spoken)
            untagged = [ImportedTurn(1, "SPEAKER0", " ".join(spoken.split()))]
            latest = _read_tagged(path, spoken, "higgs") if is_tagged else untagged
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
