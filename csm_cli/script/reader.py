"""Scripts to conversations: files and plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script.audio_lookup import AudioLookup
from csm_cli.script.json_reader import parse_json
from csm_cli.script.line_stream import MAX_LINE_CHARS, LineStream, numbered_lines
from csm_cli.script.manifest import DELIMITERS, YAML, Manifest
from csm_cli.script.resolve import UNKNOWN_HEADER, ManifestHeader, is_header, resolve_script
from csm_cli.script.source import INVALID, STDIN, Source, read_text
from csm_cli.script.yaml_reader import parse_yaml
from csm_cli.types import Conversation

_CUES = (".srt", ".vtt")


def read_script(path: Path | str) -> Conversation:
    """A dialogue from YAML, JSON or JSONL; `-` is standard input. Other suffixes are told apart by what is in the file.

    Raises:
        ScriptInvalid: with every diagnostic about the script and the files it names.
    """
    if Path(path).suffix.lower() in _CUES:
        message = "is subtitles; make a script of it with csm script convert"
        raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", message)])
    return _script(path, read_text(path))


def script_from(data: Mapping[str, Any], base: Path = Path(), name: str = "<data>") -> Conversation:
    """A dialogue from plain data; paths in it are relative to `base`.

    Raises:
        ScriptInvalid: as `read_script`, without lines and columns.
    """
    source = Source(name, AudioLookup(base), data)
    return _finished(source, resolve_script(source, "", ManifestHeader()))


def read_either(path: Path | str) -> Iterable[Conversation]:
    """A script or a manifest, whichever the file is; the diagnostics are of the form with fewer of them.

    Raises:
        ScriptInvalid: it is neither.
    """
    lines, suffix = LineStream(path), Path(path).suffix.lower()
    if suffix in DELIMITERS or (suffix not in (*YAML, ".json") and lines.size > MAX_LINE_CHARS):
        return _manifest(path, lines)
    text = "".join(lines)
    try:
        return [_script(path, text)]
    except ScriptInvalid as error:
        as_script = error
    if suffix != ".txt" and _form(path, text) != "jsonl":
        raise as_script
    try:
        return _manifest(path, lines)
    except ScriptInvalid as as_manifest:
        fewer = min(as_manifest, as_script, key=lambda invalid: invalid.count)
        raise fewer from None


def _manifest(path: Path | str, lines: LineStream) -> list[Conversation]:
    return list(Manifest(path, lines).checked())


def _script(path: Path | str, text: str) -> Conversation:
    stdin = str(path) == "-"
    source = Source(STDIN if stdin else str(path), AudioLookup(Path() if stdin else Path(path).parent))
    form, base = _form(path, text), ManifestHeader()
    if form == "yaml":
        parse_yaml(text, source)
    elif form == "json":
        source.data = parse_json(text, source)
    else:
        base = _parse_lines(text, source)
    name = "" if stdin else Path(path).stem
    conversation = resolve_script(source, name, base) if source.data is not INVALID else None
    return _finished(source, conversation)


def _form(path: Path | str, text: str) -> str:
    suffix = Path(path).suffix.lower()
    known = {**dict.fromkeys(YAML, "yaml"), ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix in known:
        return known[suffix]
    if not text.lstrip().startswith("{"):
        return "yaml"
    return "jsonl" if re.match(r"\s*\{.*\}[ \t\r]*(\n|$)", text) else "json"


def _parse_lines(text: str, source: Source) -> ManifestHeader:
    """A header, then one turn a line; or a whole script on the only line. Returns what the script stands on."""
    lines = list(numbered_lines(text.split("\n")))
    source.values[()] = (1, 1)
    if not lines:
        source.add_error((), "the file is empty; expected turns")
        return ManifestHeader()
    number, line = lines[0]
    first = parse_json(line, Source(source.file, source.files), number)
    whole = len(lines) == 1 and isinstance(first, dict) and ("turns" in first or "messages" in first)
    if whole or is_header(first):
        source.data = parse_json(line, source, number)
        lines = lines[1:]
    else:
        source.data = {}
    if not whole and source.data is not INVALID:
        rows = [parse_json(line, source, number, ("turns", at)) for at, (number, line) in enumerate(lines)]
        source.data = {**source.data, "turns": rows}
    return UNKNOWN_HEADER if first is INVALID else ManifestHeader()


def _finished(source: Source, conversation: Conversation | None) -> Conversation:
    if conversation is None or source.diagnostics:
        raise ScriptInvalid(source.diagnostics)
    return conversation
