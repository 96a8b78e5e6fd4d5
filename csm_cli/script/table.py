"""Manifests without braces: CSV with a header, and plain lines. Every value knows its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from csm_cli.script.source import INVALID, Location, Source

_TEXT = ("text", "input")


def plain_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that hold something, numbered from 1."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def parse_plain(line: str, source: Source, number: int) -> None:
    """A line as the text of an item."""
    text = line.strip(" \t\r\n")
    place = (number, 1 + line.index(text))
    source.values[()] = source.values["text",] = place
    source.data = {"text": source.text(text, ("text",), place)}


class Table:
    """A CSV's rows; `names` are its header's, and an item has those whose cells are not empty."""

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self._delimiter = delimiter
        self._row = ""  # as it stands in the file
        self._reader = csv.reader(self._kept(lines), delimiter=delimiter, strict=True)
        self._names: list[str] = []

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """The number of each row's first line, and its cells, or what is wrong with it; the first is the header."""
        while True:
            first = self._reader.line_num + 1
            self._row = ""
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, f"not a row of CSV: {error}; a cell with quotes or line breaks stands in double quotes"
                return
            if any(cell.strip() for cell in cells):
                yield first, cells

    def head(self, cells: list[str], source: Source, number: int) -> None:
        """Takes the header; complains where it cannot be one."""
        self._names = [cell.strip() for cell in cells]
        source.values[()] = (number, 1)
        twice = next((name for at, name in enumerate(self._names) if name in self._names[:at]), None)
        if twice is not None:
            source.add_error((), f'the header names "{twice}" twice; keep one')
        if not set(_TEXT) & set(self._names):
            source.add_error((), 'the first line has to name the columns, "text" among them')

    def item(self, cells: list[str], source: Source, number: int) -> None:
        """Puts a row's fields into `source`."""
        source.values[()] = (number, 1)
        if len(cells) > len(self._names):
            source.add_error((), f"{len(cells)} cells, and the header names {len(self._names)} columns")
            return
        source.data = {}
        for name, cell, place in zip(self._names, cells, self._places(cells, number), strict=False):
            if cell.strip():
                source.values[name,] = source.keys[name,] = place
                source.data[name] = source.text(cell.strip(), (name,), place)

    def _kept(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            for part in io.StringIO(line, newline=""):  # a carriage return alone ends a line too
                self._row += part
                yield part

    def _places(self, cells: list[str], number: int) -> list[Location]:
        """Where cells begin: all at the row's beginning where quotes hide it."""
        if self._row.rstrip("\r\n") != self._delimiter.join(cells):
            return [(number, 1)] * len(cells)
        return [(number, 1 + sum(len(cell) + 1 for cell in cells[:at])) for at in range(len(cells))]


def unsupported_format(source: Source, number: int, message: str) -> None:
    """A row that cannot be read."""
    source.values[()] = (number, 1)
    source.add_error((), message)
    source.data = INVALID
