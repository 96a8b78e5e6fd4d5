"""Other programs' dialogues as scripts of our own: Dia, VibeVoice, Higgs Audio, SubRip and WebVTT."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.cue_reader import read_cues
from csm_cli.script.source import read_text
from csm_cli.script.text_lines import TextLine

FORMATS = ("dia", "vibevoice", "higgs", "srt", "vtt")
_TAGS = {
    "dia": re.compile(r"\[(S\d{1,3})\]"),
    "higgs": re.compile(r"\[(SPEAKER_?\d{1,3})\]", re.IGNORECASE),
    "vibevoice": re.compile(r"^[ \t]*(Speaker[ \t]+\d{1,3})[ \t]*:", re.IGNORECASE | re.MULTILINE),
}
_EXAMPLES = {"dia": "[S1] Hello.", "higgs": "[SPEAKER0] Hello.", "vibevoice": "Speaker 1: Hello."}
_CUE = re.compile(r"^\s*(\d+\s*\n)?\s*(\d+:)?\d{1,2}:\d{2}[,.]\d{3} +-->", re.MULTILINE)
_INSTRUCTION = re.compile(r"<\|(\w+)_start\|>.*?<\|\1_end\|>", re.DOTALL)  # Higgs: scenes and instructions


def convert(path: str, form: str | None = None, folder: Path = Path()) -> dict[str, Any]:
    """A dialogue in another program's form as the data of a script that is to lie in `folder`; `-` is standard input.

    form: one of `FORMATS`; None goes by what is in the file.

    Raises:
        ScriptInvalid: it cannot be read, or is in no form, or not in that one.
    """
    text = read_text(path)
    found = form or _form(path, text)
    if found in ("srt", "vtt"):
        lines = read_cues(path, text)
    elif found == "higgs" and text.lstrip().startswith(("{", "[{")):
        lines = list(_messages(path, text))
    else:
        lines = _tagged(path, text, found)
    return _script(lines, Path(path).parent, folder)


def _form(path: str, text: str) -> str:
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix in ("srt", "vtt"):
        return suffix
    if text.lstrip().startswith("WEBVTT"):
        return "vtt"
    if _CUE.search(text[:2000]):
        return "srt"
    if text.lstrip().startswith(("{", "[{")):
        return "higgs"
    found = {name: match.start() for name, tag in _TAGS.items() if (match := tag.search(text))}
    if found:
        return min(found, key=lambda name: found[name])
    known = ", ".join(f"{name} ({example})" for name, example in _EXAMPLES.items())
    raise _refused(path, 1, f"is in no form that is known: {known}, Higgs' messages in JSON, srt, vtt")


def _tagged(path: str, text: str, form: str, first: int = 1) -> list[TextLine]:
    """The turns of a text in which each begins with who speaks. first: the number of the text's first line."""
    tags = list(_TAGS[form].finditer(text))
    start = tags[0].start() if tags else len(text)
    if text[:start].strip() or not tags:
        raise _refused(
            path, first, f"expected a turn such as {_EXAMPLES[form]!r}, got {text.split(chr(10), 1)[0][:40]!r}"
        )
    ends = [tag.start() for tag in tags[1:]] + [len(text)]
    lines = [
        TextLine(
            first + text.count("\n", 0, tag.start()), " ".join(tag[1].split()), " ".join(text[tag.end() : end].split())
        )
        for tag, end in zip(tags, ends, strict=True)
    ]
    if form == "dia" and not lines[-1].text:
        lines.pop()  # Dia asks for a last tag without a text
    for line in lines:
        if not line.text:
            raise _refused(path, line.number, f"expected text after {line.speaker}, got nothing")
    return lines


def _messages(path: str, text: str) -> Iterator[TextLine]:
    """Higgs' messages: what the user wrote is spoken; with the assistant's audio after it, it was, and is context."""
    try:
        data = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise _refused(path, line, f"is not JSON: {getattr(error, 'msg', error)}") from error
    messages = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(messages, list) or not all(isinstance(each, dict) and "role" in each for each in messages):
        raise _refused(path, 1, 'expected Higgs\' messages: {"messages": [{"role": ..., "content": ...}]}')
    waiting: list[TextLine] = []
    for message in messages:
        words, audio = _content(message.get("content"))
        if message["role"] == "user" and words:
            yield from waiting
            tagged = _TAGS["higgs"].match(words)
            waiting = _tagged(path, words, "higgs") if tagged else [TextLine(1, "SPEAKER0", " ".join(words.split()))]
        elif message["role"] == "assistant" and audio and waiting:
            yield from (TextLine(each.number, each.speaker, each.text, audio=audio) for each in waiting[:1])
            waiting = []
    yield from waiting


def _content(content: Any) -> tuple[str, str]:
    """The text and the audio file of a message."""
    items = content if isinstance(content, list) else [content]
    texts = [
        each if isinstance(each, str) else each.get("text") or "" for each in items if isinstance(each, str | dict)
    ]
    audio = [str(each["audio_url"]) for each in items if isinstance(each, dict) and each.get("audio_url")]
    return _INSTRUCTION.sub("", " ".join(texts)).strip(), audio[0] if audio else ""


def _script(lines: Sequence[TextLine], source: Path, folder: Path) -> dict[str, Any]:
    names = list(dict.fromkeys(line.speaker for line in lines))
    if all(re.search(r"\d+$", name) for name in names):
        names.sort(key=lambda name: int(re.findall(r"\d+$", name)[0]))
    heard = [line for line in lines if line.audio]
    script: dict[str, Any] = {"csm": 1, "speakers": {name: {"id": number} for number, name in enumerate(names)}}
    if heard:
        script["context"] = [
            {"speaker": line.speaker, "audio": _from(folder, source, line.audio), "text": line.text} for line in heard
        ]
    script["turns"] = list(_turns([line for line in lines if not line.audio]))
    return script


def _turns(lines: Sequence[TextLine]) -> Iterator[dict[str, Any]]:
    """Turns; where times are known, with the silence or overlap that was between them."""
    end: float | None = None
    for line in lines:
        if line.start is None or line.end is None:
            yield {line.speaker: line.text}
        elif end is None:
            if line.start:
                yield {"pause": round(line.start, 3)}
            yield {line.speaker: line.text}
        else:
            yield {"speaker": line.speaker, "text": line.text, "offset": round(line.start - end, 3)}
        end = line.end


def _from(folder: Path, source: Path, audio: str) -> str:
    """A file beside `source` as a script in `folder` names it."""
    return audio if Path(audio).is_absolute() else Path(os.path.relpath(source / audio, folder)).as_posix()


def _refused(path: str, line: int, message: str) -> ScriptInvalid:
    return ScriptInvalid([Diagnostic("<stdin>" if path == "-" else path, line, 1, "", message)])
