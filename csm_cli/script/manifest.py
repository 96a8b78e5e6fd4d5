"""Manifests: one item a line, each a conversation with an id of its own, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csm_cli.errors import MAX_DIAGNOSTICS_SHOWN, Diagnostic, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.audio_lookup import AudioLookup
from csm_cli.script.json_reader import parse_json
from csm_cli.script.line_stream import LineStream, numbered_lines
from csm_cli.script.parsed_turns import spelled
from csm_cli.script.resolve import UNKNOWN_HEADER, ManifestHeader, is_header, resolve_header, resolve_line
from csm_cli.script.source import INVALID, STDIN, Source
from csm_cli.script.table import Table, parse_plain, plain_lines, unsupported_format
from csm_cli.script.validate import validate_entry
from csm_cli.types import Conversation

DELIMITERS = {".csv": ",", ".tsv": "\t"}
YAML = (".yaml", ".yml")
_NOT_PLAIN = ("{", "[", "#")

ManifestItem = tuple[Source, int, Conversation | None]


class Manifest:
    """The lines of a file, or of `-`, standard input. Each pass over it reads it anew: memory does not grow with it.

    `.csv` and `.tsv` have a header and one item a row, `.txt` one text a line, and so has standard input that does not
    begin with a brace; all else is JSONL. A line without an id gets its number in the file, as in `0001`.

    path: None for standard input.

    Raises:
        ScriptInvalid: it cannot be read; in a later pass, a line that was good is so no more.
        InputError: in a pass, the file has changed since it was opened.
    """

    def __init__(self, path: Path | str, lines: LineStream | None = None) -> None:
        self._suffix = Path(path).suffix.lower()
        if self._suffix in YAML:
            message = "is YAML, which is a script; speak it with csm converse"
            raise ScriptInvalid([Diagnostic(str(path), 0, 0, "", message)])
        self._lines = lines or LineStream(path)
        self.path = None if self._lines.name == STDIN else Path(path)
        self._base = self.path.parent if self.path else Path()

    def checked(self) -> Iterator[Conversation]:
        """The first pass: the items before the first that is not good.

        Raises:
            ScriptInvalid: at the end, with every diagnostic about every line.
        """
        diagnostics: list[Diagnostic] = []
        count = 0
        owners: dict[str, int] = {}
        try:
            for source, number, item in self._items():
                if item is not None and owners.setdefault(item.id, number) != number:
                    twice = f'"{item.id}" is the id of line {owners[item.id]} too'
                    source.add_error((spelled(source.data, "id"),), twice)
                count += len(source.diagnostics)
                diagnostics += source.diagnostics[: MAX_DIAGNOSTICS_SHOWN - len(diagnostics)]
                if item is not None and not count:
                    yield item
        except ScriptInvalid as beyond_reading:
            count += beyond_reading.count
            diagnostics += beyond_reading.diagnostics
        if not owners and not count:
            count, diagnostics = 1, [Diagnostic(self._lines.name, 1, 1, "", "there are no lines to speak")]
        if count:
            raise ScriptInvalid(diagnostics, count)

    def __iter__(self) -> Iterator[Conversation]:
        for source, _, item in self._items():
            if source.diagnostics:
                raise ScriptInvalid(source.diagnostics)
            if item is not None:
                yield item

    def lines(self) -> Iterator[tuple[int, Conversation | ScriptInvalid]]:
        """The lines with their numbers, each a conversation or what is wrong with it."""
        for source, number, item in self._items():
            if source.diagnostics:
                yield number, ScriptInvalid(source.diagnostics)
            elif item is not None:
                yield number, item

    def _items(self) -> Iterator[ManifestItem]:
        if self._suffix in DELIMITERS:
            return self._rows(Table(self._lines, DELIMITERS[self._suffix]))
        return self._texts() if self._suffix == ".txt" or self._is_plain() else self._objects()

    def _is_plain(self) -> bool:
        if self._lines.name != STDIN:
            return False
        first = next((line.lstrip() for line in self._lines if line.strip()), "{")
        return not first.startswith(_NOT_PLAIN)

    def _source(self, files: AudioLookup) -> Source:
        return Source(self._lines.name, files)

    def _texts(self) -> Iterator[ManifestItem]:
        files = AudioLookup(self._base)
        for number, line in plain_lines(self._lines):
            source = self._source(files)
            parse_plain(line, source, number)
            yield source, number, resolve_line(source, ManifestHeader(), f"{number:04d}")

    def _rows(self, table: Table) -> Iterator[ManifestItem]:
        files = AudioLookup(self._base)
        for index, (number, cells) in enumerate(table.rows()):
            source = self._source(files)
            if isinstance(cells, str):
                unsupported_format(source, number, cells)
            elif index == 0:
                table.head(cells, source, number)
            else:
                table.item(cells, source, number)
            readable = source.data is not INVALID
            yield source, number, resolve_line(source, ManifestHeader(), f"{number:04d}") if readable else None
            if index == 0 and source.diagnostics:
                return

    def _objects(self) -> Iterator[ManifestItem]:
        files, setting = AudioLookup(self._base), ManifestHeader()
        for index, (number, line) in enumerate(numbered_lines(self._lines)):
            source = self._source(files)
            source.data = parse_json(line, source, number)
            if index == 0 and is_header(source.data):
                header = validate_entry(schema.HeaderOutline, source, source.data, ())
                setting = resolve_header(source, header, setting) if header else setting
                yield source, number, None
            elif source.data is INVALID:
                setting = setting if index else UNKNOWN_HEADER
                yield source, number, None
            else:
                yield source, number, resolve_line(source, setting, f"{number:04d}")


def read_manifest(path: Path | str) -> Manifest:
    """A manifest whose every line is good.

    Raises:
        ScriptInvalid: with every diagnostic about every line.
    """
    manifest = Manifest(path)
    for _ in manifest.checked():
        pass
    return manifest
