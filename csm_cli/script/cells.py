"""Cells of tables as spreadsheets export them: their delimiter, and rows with and without quotes."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = (",", ";", "\t", "|")
_MAX_CELL_LINES = 100  # of a cell in quotes between tabs
_SEPARATOR_LINE = re.compile(r"^\ufeff?\"?sep=(.)\"?[\r\n]*$", re.IGNORECASE)


def separator_of(line: str) -> str | None:
    """The delimiter that a line such as `sep=;` declares, as Excel writes and reads it; None for other lines."""
    match = _SEPARATOR_LINE.match(line)
    return match[1] if match else None


def find_delimiter(header: str, known: Iterable[str], usual: str) -> str:
    """The delimiter that splits a header into most of the `known` names, in any case; `usual` where several do."""
    names = {name.casefold() for name in known}

    def score(delimiter: str) -> tuple[int, bool, int]:
        cells = [cell.strip().casefold() for cell in csv_cells(header, delimiter)]
        return len(names.intersection(cells)), delimiter == usual and len(cells) > 1, len(cells)

    return max((usual, *_OTHER_DELIMITERS), key=score)


def csv_cells(line: str, delimiter: str, strict: bool = False) -> list[str]:
    """Cells of a line of CSV; none where it cannot be read. strict: quotes must be those of CSV."""
    try:
        return next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter, strict=strict), [])
    except csv.Error:
        return []


def split_cells(line: str, delimiter: str) -> list[str]:
    """Cells of a line without rules of quoting; a cell that was written in quotes loses them."""
    cells = line.rstrip("\r\n").split(delimiter)
    for index, cell in enumerate(cells):
        inner = cell.strip()[1:-1]
        if len(cell.strip()) >= 2 and cell.strip()[0] == cell.strip()[-1] == '"' and '"' not in inner.replace('""', ""):
            cells[index] = inner.replace('""', '"')
    return cells


def table_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The rows that are not blank: the number of the first line, and the cells or why the row cannot be parsed.

    Between tabs, a quote is a character like others, since texts begin with one.
    """
    if delimiter == "\t":
        yield from _tab_rows(lines)
        return
    # A carriage return alone ends a line for csv too.
    parts = (part for line in lines for part in io.StringIO(line, newline=""))
    reader = csv.reader(parts, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not a row of CSV: {error}; put cells with quotes or line breaks in double quotes"
            return
        if any(cell.strip() for cell in cells):
            yield number, cells


def _tab_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """A quote is a character like others; but a cell that begins with one may go on in the next lines, up to the line
    that closes it and completes the row."""
    source = enumerate(lines, 1)
    waiting: deque[tuple[int, str]] = deque()
    width = 0
    while entry := waiting.popleft() if waiting else next(source, None):
        number, line = entry
        cells = split_cells(line, "\t")
        width = width or len(cells)
        if len(cells) > width and len(quoted := csv_cells(line, "\t", strict=True)) == width:
            cells = quoted  # with a tab inside
        if cells[-1].lstrip().startswith('"') and cells[-1].count('"') % 2 and len(cells) <= width:
            taken = [line]
            ahead: list[tuple[int, str]] = []
            while len(taken) < _MAX_CELL_LINES and (after := waiting.popleft() if waiting else next(source, None)):
                ahead.append(after)
                if width > 1 and len(split_cells(after[1], "\t")) == width:
                    break  # the next row; the quote is a character
                taken.append(after[1])
                if '"' in after[1]:
                    whole = csv_cells("".join(taken), "\t", strict=True)
                    if len(whole) == width:
                        cells, ahead = whole, []
                        break
            waiting.extendleft(reversed(ahead))
        if any(cell.strip() for cell in cells):
            yield number, cells
