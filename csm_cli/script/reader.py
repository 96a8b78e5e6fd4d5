"""Scripts and manifests to conversations: YAML, JSON, JSONL, CSV and lines of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, Diagnostic, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.files import STDIN, AudioLookup, LineStream, csv_rows, numbered_lines, read_text
from csm_cli.script.limits import MAX_COLUMNS, MAX_LINE_BYTES
from csm_cli.script.parsers import parse_json, parse_yaml
from csm_cli.script.resolve import (
    UNKNOWN_HEADER,
    ManifestHeader,
    is_header,
    resolve_header,
    resolve_line,
    resolve_script,
)
from csm_cli.script.source import INVALID, Source
from csm_cli.script.validate import validate_entry
from csm_cli.types import Conversation

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SCRIPT_FORMATS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}

ManifestItem = tuple[Source, int, Conversation | None]


def read_script(path: Path | str) -> Conversation:
    """A dialogue from YAML, JSON or JSONL; `-` is standard input. Without a known suffix, the content decides.

    Raises:
        ScriptInvalid: with every diagnostic about the script and the files it names.
    """
    if Path(path).suffix.lower() in (".srt", ".vtt"):
        message = "is a subtitle file; convert it with csm script convert"
        raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", message)])
    return _read_script(path, read_text(path))


def script_from(data: Mapping[str, Any], base: Path = Path(), name: str = "<data>") -> Conversation:
    """A dialogue from plain data; paths in it are relative to `base`.

    Raises:
        ScriptInvalid: with every diagnostic, without lines and columns.
    """
    source = Source(name, AudioLookup(base), data)
    return _without_errors(source, resolve_script(source, "", ManifestHeader()))


def read_manifest(path: Path | str) -> Manifest:
    """A manifest whose every line is valid.

    Raises:
        ScriptInvalid: with every diagnostic about every line.
    """
    manifest = Manifest(path)
    for _ in manifest.checked():
        pass
    return manifest


def read_either(path: Path | str) -> Iterable[Conversation]:
    """The conversation of a script or those of a manifest, whichever the file is.

    Raises:
        ScriptInvalid: the file is neither; with the diagnostics of the format that has fewer of them.
    """
    lines, suffix = LineStream(path), Path(path).suffix.lower()
    if suffix in _DELIMITERS or (_SCRIPT_FORMATS.get(suffix) not in ("yaml", "json") and lines.size > MAX_LINE_BYTES):
        return list(Manifest(path, lines).checked())
    text = "".join(lines)
    try:
        return [_read_script(path, text)]
    except ScriptInvalid as error:
        as_script = error
    if suffix != ".txt" and _script_format(path, text) != "jsonl":
        raise as_script
    try:
        return list(Manifest(path, lines).checked())
    except ScriptInvalid as as_manifest:
        raise min(as_manifest, as_script, key=lambda invalid: invalid.count) from None


class Manifest:
    """The conversations of a JSONL, CSV or text file, one a line; `-` is standard input.

    `.csv` and `.tsv` have a header and one item a row, `.txt` one text a line, and so has standard input that does not
    begin with a brace; all else is JSONL. A line without an id gets its number in the file, such as `0001`. Each
    iteration reads the file again, so that memory does not grow with it.

    path: None for standard input.

    Raises:
        ScriptInvalid: the file cannot be read; while iterating: a line is invalid.
        InputError: while iterating: the file has changed since it was opened.
    """

    def __init__(self, path: Path | str, lines: LineStream | None = None) -> None:
        self._suffix = Path(path).suffix.lower()
        if _SCRIPT_FORMATS.get(self._suffix) == "yaml":
            message = "is YAML, which is a script; use csm converse"
            raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", message)])
        self._lines = lines or LineStream(path)
        self.path = None if self._lines.name == STDIN else Path(path)

    def checked(self) -> Iterator[Conversation]:
        """Checks all lines; yields those before the first invalid one.

        Raises:
            ScriptInvalid: at the end, with every diagnostic about every line.
        """
        diagnostics: list[Diagnostic] = []
        count = 0
        owners: dict[str, int] = {}
        try:
            for source, number, item in self._items():
                if item is not None and owners.setdefault(item.id, number) != number:
                    field = "custom_id" if "custom_id" in source.data else "id"
                    source.add_error((field,), f'"{item.id}" is the id of line {owners[item.id]} too')
                count += len(source.diagnostics)
                diagnostics += source.diagnostics[: MAX_DIAGNOSTICS_SHOWN - len(diagnostics)]
                if item is not None and not count:
                    yield item
        except ScriptInvalid as unreadable:
            count += unreadable.count
            diagnostics += unreadable.diagnostics
        if not owners and not count:
            count, diagnostics = 1, [Diagnostic(self._lines.name, 1, 1, "", "there are no lines to speak")]
        if count:
            raise ScriptInvalid(diagnostics, count)

    def __iter__(self) -> Iterator[Conversation]:
        for _, item in self.lines():
            if isinstance(item, ScriptInvalid):
                raise item
            yield item

    def lines(self) -> Iterator[tuple[int, Conversation | ScriptInvalid]]:
        """Each line's number and its conversation or its diagnostics."""
        for source, number, item in self._items():
            if source.diagnostics:
                yield number, ScriptInvalid(source.diagnostics)
            elif item is not None:
                yield number, item

    def _items(self) -> Iterator[ManifestItem]:
        files = AudioLookup(self.path.parent if self.path else Path())
        if self._suffix in _DELIMITERS:
            return self._csv_items(files)
        first = ""
        if self.path is None:
            first = next((line.lstrip() for line in self._lines if line.strip()), "")
        is_text = self._suffix == ".txt" or (first and first[0] not in "{[#")
        return self._text_items(files) if is_text else self._jsonl_items(files)

    def _text_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        for number, line in numbered_lines(self._lines):
            text = line.lstrip()
            location = number, 1 + len(line) - len(text)
            source = Source(self._lines.name, files, locations={(): location, ("text",): location})
            source.data = {"text": source.text(text, ("text",), location)}
            yield source, number, resolve_line(source, ManifestHeader(), f"{number:04d}")

    def _csv_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        header, names = ManifestHeader(), None
        for number, cells in csv_rows(self._lines, _DELIMITERS[self._suffix]):
            source = Source(self._lines.name, files, locations={(): (number, 1)})
            item = None
            if isinstance(cells, str):
                source.add_error((), cells)
            elif names is None:
                if len(cells) > MAX_COLUMNS:
                    source.add_error((), f"the header has {len(cells)} columns, more than {MAX_COLUMNS}")
                    yield source, number, None
                    return
                names = [source.text(cell.strip(), (), (number, 1)) for cell in cells]
                twice, count = Counter(names).most_common(1)[0]
                if count > 1:
                    source.add_error((), f'the header names "{twice}" twice; keep one')
                if not {"text", "input"} & set(names):
                    source.add_error((), 'the first line must name the columns, "text" among them')
                if source.diagnostics:
                    yield source, number, None
                    return
            elif len(cells) > len(names):
                source.add_error((), f"{len(cells)} cells, but the header names {len(names)} columns")
            else:
                fields = [(name, cell.strip()) for name, cell in zip(names, cells, strict=False) if cell.strip()]
                source.data = {name: source.text(cell, (name,), (number, 1)) for name, cell in fields}
                item = resolve_line(source, header, f"{number:04d}")
            yield source, number, item

    def _jsonl_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        header = ManifestHeader()
        for index, (number, line) in enumerate(numbered_lines(self._lines, comments=True)):
            source = Source(self._lines.name, files)
            source.data = parse_json(line, source, number)
            item = None
            if index == 0 and is_header(source.data):
                outline = validate_entry(schema.HeaderOutline, source, source.data, ())
                header = resolve_header(source, outline, header) if outline else header
            elif source.data is not INVALID:
                item = resolve_line(source, header, f"{number:04d}")
            elif index == 0:
                header = UNKNOWN_HEADER
            yield source, number, item


def _read_script(path: Path | str, text: str) -> Conversation:
    is_stdin = str(path) == "-"
    source = Source(STDIN if is_stdin else str(path), AudioLookup(Path() if is_stdin else Path(path).parent))
    header = ManifestHeader()
    kind = _script_format(path, text)
    if kind == "yaml":
        source.data = parse_yaml(text, source)
    elif kind == "json":
        source.data = parse_json(text, source)
    else:
        header = _parse_jsonl(text, source)
    conversation = None
    if source.data is not INVALID:
        conversation = resolve_script(source, "" if is_stdin else Path(path).stem, header)
    return _without_errors(source, conversation)


def _script_format(path: Path | str, text: str) -> str:
    """yaml, json or jsonl: by suffix, else by content."""
    known = _SCRIPT_FORMATS.get(Path(path).suffix.lower())
    if known or not text.lstrip().startswith("{"):
        return known or "yaml"
    return "jsonl" if re.match(r"\s*\{.*\}[ \t\r]*(\n|$)", text) else "json"


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
