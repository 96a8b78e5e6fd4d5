"""Manifests: many items in one file, as JSON lines, a JSON array, a table or lines of text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, Diagnostic, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.cells import DELIMITERS, find_delimiter, separator_of, table_rows
from csm_cli.script.dialogue_text import detect_dialogue
from csm_cli.script.files import STDIN, AudioLookup, LineStream, numbered_lines, read_text
from csm_cli.script.limits import MAX_COLUMNS, MAX_TEXT_FILE_BYTES
from csm_cli.script.parquet_rows import SUFFIX as PARQUET
from csm_cli.script.parquet_rows import parquet_rows
from csm_cli.script.parsers import parse_json, parse_yaml, split_json_array
from csm_cli.script.resolve import (
    UNKNOWN_HEADER,
    ManifestHeader,
    is_header,
    read_speakers,
    resolve_header,
    resolve_line,
)
from csm_cli.script.source import INVALID, Source, quoted
from csm_cli.script.validate import validate_entry
from csm_cli.storage.remote import is_url
from csm_cli.types import Conversation

_LOG = logging.getLogger(__name__)
_CELL_FIELDS = frozenset(
    name
    for each in schema.ManifestLine.model_fields
    if each != "context"
    for name in (each, *schema.ALIASES.get(each, ()))
)
_DIALOGUE_LINES = 1000  # of a text in which a dialogue would be recognized

ManifestItem = tuple[Source, int, Conversation | None]


@dataclass(frozen=True)
class ManifestColumns:
    """The user's choice of a table's columns, or of fields of JSON, by name; by number where a table has no names.

    With a choice, or in a table, other columns than the known ones are no error; they are carried to the results.
    """

    text: str | None = None
    speaker: str | None = None
    id: str | None = None

    def chosen(self) -> dict[str, str]:
        """Column by field."""
        return {name: column for name, column in vars(self).items() if column is not None}


@dataclass(frozen=True)
class _TableHeader:
    """The columns of a table. fields: what each one means, None for those that are carried to the results."""

    names: Sequence[str]
    fields: Sequence[str | None]
    first_row: int


class Manifest:
    """The conversations of a manifest, one a row; `-` is standard input; also by URL.

    `.csv`, `.tsv` and `.parquet` have column names and one item a row, `.txt` one text a line, and so has standard
    input that does not begin with a bracket; `.json`, and what begins with `[`, is a JSON array; all else is JSONL. An
    item without an id gets its line in the file, such as `0001`. Each iteration reads the file again, so that memory
    does not grow with it.

    path: None for standard input and for a URL. header: for all items, below a header in the file.

    Raises:
        ScriptInvalid: the file cannot be read; while iterating: a line is invalid.
        InputError: while iterating: the file has changed since it was opened.
    """

    def __init__(
        self,
        path: Path | str,
        lines: LineStream | None = None,
        columns: ManifestColumns | None = None,
        header: ManifestHeader | None = None,
    ) -> None:
        self._suffix = Path(path).suffix.lower()
        if self._suffix in (".yaml", ".yml"):
            raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", "is YAML, which is a script; use csm converse")])
        self._lines = lines or LineStream(path)
        self.path = None if self._lines.name == STDIN or is_url(str(path)) else Path(path)
        self._base = str(path).rpartition("/")[0] if is_url(str(path)) else self.path.parent if self.path else Path()
        self._columns = columns or ManifestColumns()
        self._header = header or ManifestHeader()
        self._warned = False
        self._row_noun = "line"

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
                    name = "custom_id" if isinstance(source.data, Mapping) and "custom_id" in source.data else "id"
                    source.add_error((name,), f'"{item.id}" is the id of {self._row_noun} {owners[item.id]} too')
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
        files = AudioLookup(self._base)
        if self._suffix in DELIMITERS:
            return self._table_items(files, self._csv_rows())
        if self._suffix == PARQUET:
            return self._table_items(files, parquet_rows(self._lines.name, self._lines.file))
        first = next((line.lstrip() for line in self._lines if line.strip()), "")
        if self._suffix == ".txt" or (self._lines.name == STDIN and first and first[0] not in "{[#"):
            return self._text_items(files)
        if self._suffix == ".json" or first.startswith("["):
            return self._array_items(files)
        return self._jsonl_items(files)

    def _text_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        if not self._warned and detect_dialogue("".join(islice(self._lines, _DIALOGUE_LINES))):
            _LOG.warning(
                "%s: looks like a dialogue; here each line is an item, and names are spoken (csm converse reads it)",
                self._lines.name,
            )
        self._warned = True
        for number, line in numbered_lines(self._lines):
            text = line.lstrip()
            location = number, 1 + len(line) - len(text)
            source = Source(self._lines.name, files, locations={(): location, ("text",): location})
            source.data = {"text": source.text(text, ("text",), location)}
            yield source, number, resolve_line(source, self._header, f"{number:04d}")

    def _csv_rows(self) -> Iterator[tuple[int, list[str] | str]]:
        known = (*_CELL_FIELDS, *self._columns.chosen().values())
        lines = ("\n" if number == 0 and separator_of(line) else line for number, line in enumerate(self._lines))
        head = [line for line in islice(self._lines, 20) if line.strip()]
        declared = separator_of(head[0]) if head else None
        return table_rows(lines, declared or find_delimiter(head[0] if head else "", known, DELIMITERS[self._suffix]))

    def _table_items(self, files: AudioLookup, rows: Iterable[tuple[int, list[str] | str]]) -> Iterator[ManifestItem]:
        table: _TableHeader | None = None
        for number, cells in rows:
            source = Source(self._lines.name, files, locations={(): (number, 1)})
            item = None
            if isinstance(cells, str):
                source.add_error((), cells)
            elif table is None:
                table = self._table_header(source, cells, number)
                if table is None or source.diagnostics:
                    yield source, number, None
                    return
            if table and not isinstance(cells, str) and number >= table.first_row:
                item = self._row(source, cells, number, table)
            yield source, number, item

    def _table_header(self, source: Source, cells: Sequence[str], number: int) -> _TableHeader | None:
        """The columns of a table; None and a diagnostic where they are not clear."""
        if len(cells) > MAX_COLUMNS:
            source.add_error((), f"the header has {len(cells)} columns, more than {MAX_COLUMNS}")
            return None
        names = [source.text(cell.strip(), (), (number, 1)) for cell in cells]
        folded = [name.casefold() for name in names]
        twice = [name for name, count in Counter(folded).items() if name and count > 1]
        chosen = self._columns.chosen()
        is_named = bool(_CELL_FIELDS.intersection(folded)) or any(each.casefold() in folded for each in chosen.values())
        fields = [name if name in _CELL_FIELDS else None for name in folded]
        for meaning, column in chosen.items():
            if column.casefold() in folded:
                index = folded.index(column.casefold())
            elif column.isdecimal() and 1 <= int(column[:6]) <= len(names):
                index = int(column[:6]) - 1
            else:
                source.add_error((), f"--{meaning}-column {column}: no such column; columns: {_list(names)}")
                return None
            aliases = (meaning, *schema.ALIASES.get(meaning, ()))
            fields = [None if name in aliases else name for name in fields]
            fields[index] = meaning
        if is_named and twice:
            source.add_error((), f'the header names "{twice[0]}" twice; keep one')
        elif not {"text", "input"} & set(fields):
            source.add_error((), f"which column has the words? give --text-column NAME; columns: {_list(names)}")
        if not is_named:
            return _TableHeader([f"column {index}" for index in range(1, len(names) + 1)], fields, number)
        for name, field in zip(names, fields, strict=True):
            guess = None if field or self._warned else source.suggestion(name.casefold(), _CELL_FIELDS, cutoff=0.8)
            if guess:
                _LOG.warning('%s: column "%s" has no effect; did you mean "%s"?', source.file, name, guess)
        self._warned = True
        return _TableHeader(names, fields, number + 1)

    def _row(self, source: Source, cells: Sequence[str], number: int, table: _TableHeader) -> Conversation | None:
        source.data, extra = {}, {}
        for index, cell in enumerate(map(str.strip, cells)):
            if not cell:
                continue
            name = table.names[index] if index < len(table.names) else ""
            if not name:
                source.add_error((), f"cell {index + 1} ({quoted(cell[:40])}) is in a column without a name")
                continue
            meaning = table.fields[index]
            value = source.text(cell, (meaning or name,), (number, 1))
            if meaning is None:
                extra[name] = value
            else:
                source.data[meaning] = value
        item = resolve_line(source, self._header, f"{number:04d}")
        return replace(item, extra=extra) if item else None

    def _jsonl_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        header = self._header
        for index, (number, line) in enumerate(numbered_lines(self._lines, comments=True)):
            source = Source(self._lines.name, files)
            source.data = parse_json(line, source, number)
            item = None
            if index == 0 and is_header(source.data):
                outline = validate_entry(schema.HeaderOutline, source, source.data, ())
                header = resolve_header(source, outline, header) if outline else header
            elif source.data is not INVALID:
                item = self._object(source, header, number)
            elif index == 0:
                header = UNKNOWN_HEADER
            yield source, number, item

    def _array_items(self, files: AudioLookup) -> Iterator[ManifestItem]:
        if self._lines.size > MAX_TEXT_FILE_BYTES:
            message = f"is larger than {MAX_TEXT_FILE_BYTES // 1_000_000} MB; write one object per line (.jsonl)"
            raise ScriptInvalid([Diagnostic(self._lines.name, 0, 0, "", message)])
        text = "".join(self._lines)
        source = Source(self._lines.name, files)
        if not text.lstrip().startswith("["):
            source.data = parse_json(text, source)
            yield source, 1, None if source.data is INVALID else self._object(source, self._header, 1)
            return
        self._row_noun = "item"
        for number, (value, line, problem) in enumerate(split_json_array(text), 1):
            source = Source(self._lines.name, files)
            item = None
            if problem:
                source.add_error_at(problem[0], (), problem[1])
            else:
                source.data = parse_json(value, source, line)
                item = None if source.data is INVALID else self._object(source, self._header, number)
            yield source, number, item

    def _object(self, source: Source, header: ManifestHeader, number: int) -> Conversation | None:
        """The item of a JSON object, with the columns that the user chose."""
        chosen, extra = self._columns.chosen(), {}
        if chosen and isinstance(source.data, dict):
            data: dict[str, Any] = {}
            meanings = {column: meaning for meaning, column in chosen.items()}
            for name, value in source.data.items():
                meaning = meanings.get(name, None if name in chosen else name)
                if meaning in _CELL_FIELDS or meaning in ("context", "turns", "messages"):
                    data[meaning] = value
                    source.locations.setdefault((meaning,), source.locations.get((name,), (number, 1)))
                else:
                    extra[name] = value
            source.data = data
        item = resolve_line(source, header, f"{number:04d}")
        return replace(item, extra=extra) if item else None


def read_voice_map(path: Path | str) -> ManifestHeader:
    """The speakers of a YAML or JSON file with `name: voice` lines; a voice may also be the fields of a speaker.

    Raises:
        ScriptInvalid: with every diagnostic about the file and the voices.
    """
    text = read_text(path)
    source = Source(str(path), AudioLookup(Path(path).parent))
    is_json = Path(path).suffix.lower() == ".json"
    source.data = parse_json(text, source) if is_json else parse_yaml(text, source, "lines such as ana: ash")
    if isinstance(source.data, Mapping) and set(source.data) == {"speakers"}:
        source.data = source.data["speakers"]
    header = ManifestHeader()
    if isinstance(source.data, Mapping):
        entries = {
            name: entry if isinstance(entry, Mapping) else {"voice": entry} for name, entry in source.data.items()
        }
        header = ManifestHeader(read_speakers(source, entries))
    elif not source.diagnostics:
        source.add_error((), f"expected lines such as ana: ash, got {quoted(source.data)}")
    if source.diagnostics:
        raise ScriptInvalid(source.diagnostics)
    return header


def _list(names: Sequence[str]) -> str:
    return ", ".join(name or "(no name)" for name in names[:12]) + (", ..." if len(names) > 12 else "")
