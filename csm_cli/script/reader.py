"""Scripts and manifests to conversations: YAML, JSON, JSONL, tables, and dialogues and lines of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csm_cli.errors import Diagnostic, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.cells import DELIMITERS
from csm_cli.script.cue_files import SUFFIXES, detect_cues, is_transcript
from csm_cli.script.dialogue_text import detect_dialogue
from csm_cli.script.files import STDIN, AudioLookup, LineStream, numbered_lines, read_text
from csm_cli.script.importers import import_text
from csm_cli.script.inline import has_tags, parse_say
from csm_cli.script.limits import MAX_LINE_BYTES
from csm_cli.script.manifest import Manifest, ManifestColumns
from csm_cli.script.parsers import parse_json, parse_yaml
from csm_cli.script.resolve import UNKNOWN_HEADER, ManifestHeader, is_header, resolve_script
from csm_cli.script.source import INVALID, Source
from csm_cli.types import Conversation

_SCRIPT_FORMATS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_YAML_SECTION = re.compile(rf"^(?:{'|'.join(schema.ScriptOutline.model_fields)})[ \t]*:", re.MULTILINE)


def read_script(path: Path | str) -> Conversation:
    """A dialogue from YAML, JSON, JSONL or text with names before the turns; `-` is standard input.

    Without a known suffix, the content decides.

    Raises:
        ScriptInvalid: with every diagnostic about the script and the files it names.
    """
    suffix = Path(path).suffix.lower()
    problem = "is a manifest, with an item in each row; use csm batch" if suffix in DELIMITERS else ""
    if suffix in SUFFIXES:
        problem = "is a subtitle file; convert it with csm script convert"
    if problem:
        raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", problem)])
    return _read_script(path, read_text(path))


def script_from(data: Mapping[str, Any], base: Path = Path(), name: str = "<data>") -> Conversation:
    """A dialogue from plain data; paths in it are relative to `base`.

    Raises:
        ScriptInvalid: with every diagnostic, without lines and columns.
    """
    source = Source(name, AudioLookup(base), data)
    return _without_errors(source, resolve_script(source, "", ManifestHeader()))


def read_manifest(
    path: Path | str, columns: ManifestColumns | None = None, header: ManifestHeader | None = None
) -> Manifest:
    """A manifest whose every line is valid.

    Raises:
        ScriptInvalid: with every diagnostic about every line.
    """
    manifest = Manifest(path, None, columns, header)
    for _ in manifest.checked():
        pass
    return manifest


def read_either(
    path: Path | str, columns: ManifestColumns | None = None, header: ManifestHeader | None = None
) -> Iterable[Conversation]:
    """The conversation of a script or those of a manifest, whichever the file is.

    Raises:
        ScriptInvalid: the file is neither; with the diagnostics of the format that has fewer of them.
    """
    lines, suffix = LineStream(path), Path(path).suffix.lower()
    if suffix in DELIMITERS or (_SCRIPT_FORMATS.get(suffix) not in ("yaml", "json") and lines.size > MAX_LINE_BYTES):
        return list(Manifest(path, lines, columns, header).checked())
    text = "".join(lines)
    try:
        return [_read_script(path, text)]
    except ScriptInvalid as error:
        as_script = error
    is_array = text.lstrip().startswith("[") and _SCRIPT_FORMATS.get(suffix) != "yaml"
    if suffix != ".txt" and not is_array and _script_format(path, text) != "jsonl":
        raise as_script
    try:
        return list(Manifest(path, lines, columns, header).checked())
    except ScriptInvalid as as_manifest:
        raise min(as_manifest, as_script, key=lambda invalid: invalid.count) from None


def _read_script(path: Path | str, text: str) -> Conversation:
    is_stdin = str(path) == "-"
    name, base = (STDIN, Path()) if is_stdin else (str(path), Path(path).parent)
    source = Source(name, AudioLookup(base))
    header = ManifestHeader()
    kind = _script_format(path, text)
    if kind == "cues":
        raise ScriptInvalid([Diagnostic(name, 0, 0, "", "has times of cues; convert it with csm script convert")])
    if kind == "tags":
        return Conversation(parse_say(text, 0, name), id="" if is_stdin else Path(path).stem)
    if kind == "yaml":
        source.data = parse_yaml(text, source)
    elif kind == "json":
        source.data = parse_json(text, source)
        if is_transcript(source.data):
            raise ScriptInvalid([Diagnostic(name, 0, 0, "", "is a transcript; convert it with csm script convert")])
    elif kind == "jsonl":
        header = _parse_jsonl(text, source)
    else:
        imported = import_text(str(path), text, kind, base)
        source.data = imported.data
        source.locations = {(): (1, 1), **{("turns", at): (line, 1) for at, line in enumerate(imported.lines)}}
    if isinstance(source.data, list):
        _name_list(source, source.data)
    conversation = None
    if source.data is not INVALID:
        conversation = resolve_script(source, "" if is_stdin else Path(path).stem, header)
    return _without_errors(source, conversation)


def _name_list(source: Source, entries: Sequence[Any]) -> None:
    """Makes a bare list the turns, or the chat messages, of a script."""
    is_chat = bool(entries) and all(isinstance(each, Mapping) and "content" in each for each in entries)
    section = "messages" if is_chat else "turns"
    source.data = {section: entries}
    source.locations = {(): (1, 1), **{(section, *path): at for path, at in source.locations.items()}}
    source.key_locations = {(section, *path): at for path, at in source.key_locations.items()}


def _script_format(path: Path | str, text: str) -> str:
    """yaml, json, jsonl; cues; tags for `[0]Hello.`; or a format of `import_text`: by suffix, else by content."""
    known = _SCRIPT_FORMATS.get(Path(path).suffix.lower(), "")
    start = text.lstrip()
    if known in ("json", "jsonl"):
        return known
    if not known and start.startswith("{"):
        return "jsonl" if re.match(r"\{.*\}[ \t\r]*(\n|$)", start) else "json"
    if not known and re.match(r"\[\s*[\[{\"\]]", start):
        return "json"
    if _YAML_SECTION.search(text):
        return "yaml"
    if start.startswith("- "):  # a list in YAML, or of a play in Markdown
        trial = Source("", AudioLookup(Path()))
        if parse_yaml(text, trial) is not INVALID and not trial.diagnostics:
            return "yaml"
    if not known and detect_cues(text):
        return "cues"
    if not known and has_tags(text):
        return "tags"
    return detect_dialogue(text) or "yaml"


def _parse_jsonl(text: str, source: Source) -> ManifestHeader:
    """Fills `source` with a header and one turn a line, or with the whole script on the only line.

    Returns what the script starts from: an unknown header if the first line cannot be parsed.
    """
    lines = list(numbered_lines(text.split("\n"), comments=True))
    source.locations[()] = (1, 1)
    if not lines:
        source.add_error((), "the file is empty; expected turns")
        return ManifestHeader()
    number, line = lines[0]
    first = parse_json(line, Source(source.file, source.files), number)
    is_whole = len(lines) == 1 and isinstance(first, dict) and ("turns" in first or "messages" in first)
    source.data = {}
    if is_whole or is_header(first):
        source.data = parse_json(line, source, number)
        lines = lines[1:]
    if not is_whole and source.data is not INVALID:
        turns = [parse_json(line, source, number, ("turns", at)) for at, (number, line) in enumerate(lines)]
        source.data = {**source.data, "turns": turns}
    return UNKNOWN_HEADER if first is INVALID else ManifestHeader()


def _without_errors(source: Source, conversation: Conversation | None) -> Conversation:
    if conversation is None or source.diagnostics:
        raise ScriptInvalid(source.diagnostics)
    return conversation
