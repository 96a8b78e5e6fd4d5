"""Rows of dataset files, each with its place: JSON lines, JSON arrays, transcripts of recognizers, tables, file pairs.

Every row that a file holds is yielded once, either its fields or what is wrong with it; a damaged row never takes the
next one with it.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from csm_cli.data.columns import AUDIO_SUFFIXES
from csm_cli.errors import InputError
from csm_cli.script.cells import csv_cells, split_cells
from csm_cli.storage.untrusted import parse_json, read_regular

Location = int | str
"""Line number of a row, or its place in words, as `row 3`."""
Row = tuple[Location, Any]
"""A row's place and its fields: a mapping, a list of cells or of a conversation's mappings; text is what is wrong."""

MAX_JSON_BYTES = 256 << 20  # of a JSON array or transcript, which is read at once
_MAX_RECORD_LINES = 40  # of a cell in quotes
_TEXT_SUFFIXES = (".normalized.txt", ".original.txt", ".txt", ".lab")


def numbered_lines(path: Path, newline: str = "\n") -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1, in UTF-8 or UTF-16 by its mark; other bytes become surrogates.

    newline: as for `open`. Raises InputError where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_wide else "utf-8-sig"
        with path.open(encoding=encoding, errors="replace" if is_wide else "surrogateescape", newline=newline) as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a dataset's file or folder") from error


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a file with one in each line."""
    for number, line in numbered_lines(path):
        if line.strip():
            fields = json_object(line)
            yield number, "is not a JSON object" if fields is None else fields


def json_object(line: str) -> dict[str, Any] | None:
    try:
        fields = parse_json(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def read_json_file(path: Path) -> Any:
    """The value of a JSON file in UTF-8 or UTF-16. Raises InputError where it cannot be read or is not JSON."""
    try:
        data = read_regular(path, MAX_JSON_BYTES)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return parse_json(data.decode("utf-16" if wide else "utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({getattr(error, 'strerror', None) or error})") from error


def segment_rows(segments: Sequence[Mapping[str, Any]], audio: Path) -> Iterator[Row]:
    """Segments as rows of `audio`, each with `start` and `end` in seconds, `text` and, where known, `speaker`."""
    for number, segment in enumerate(segments, 1):
        fields = {name: segment[name] for name in ("start", "end", "text", "speaker") if name in segment}
        offsets = segment.get("offsets")  # of whisper.cpp, in milliseconds
        if isinstance(offsets, Mapping):
            fields |= {"start_ms": offsets.get("from"), "end_ms": offsets.get("to")}
        yield f"segment {number}", {"audio": audio.name, **fields}


def recording_beside(path: Path) -> Path:
    """The recording of a transcript: the file of its name with a suffix of sound.

    Raises:
        InputError: there is none.
    """
    stems = [path.with_suffix(""), path]
    if (inner := path.with_suffix("")).suffix.lower() in AUDIO_SUFFIXES and inner.is_file():
        return inner  # talk.wav.json
    for stem in stems:
        for suffix in AUDIO_SUFFIXES:
            if os.path.isfile(f"{stem}{suffix}"):  # noqa: PTH113
                return Path(f"{stem}{suffix}")
    expected = path.with_suffix(".wav").name
    raise InputError(f"{path}: is the transcript of a recording that is not beside it; put {expected} there")


def find_pairs(folder: Path) -> list[tuple[str, Path | None, Path | None]]:
    """Name, recording and text of each `x.wav` with `x.txt` or `x.lab` below a folder, also where one is missing.

    Empty where no recording has its text.
    """
    recordings: dict[str, Path] = {}
    texts: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        suffix = next((each for each in (*_TEXT_SUFFIXES, *AUDIO_SUFFIXES) if name.lower().endswith(each)), "")
        if suffix and not file.name.startswith(".") and file.is_file():
            place = texts if suffix in _TEXT_SUFFIXES else recordings
            place.setdefault(name[: -len(suffix)], file)
    if not recordings.keys() & texts.keys():
        return []
    return [(name, recordings.get(name), texts.get(name)) for name in sorted(recordings.keys() | texts.keys())]


def first_lines(path: Path, count: int = 2) -> list[str]:
    """The first lines that are neither empty nor comments."""
    lines = (line.strip("\r\n") for _, line in numbered_lines(path, newline=""))
    return list(islice((line for line in lines if line.strip() and not line.startswith("#")), count))


def plain_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Lines of cells between delimiters, for tables in which a quote is a character like others."""
    for number, line in numbered_lines(path, newline=""):
        if line.strip():
            yield number, split_cells(line, delimiter)


def quoted_rows(path: Path, delimiter: str, width: int, is_row: Callable[[Sequence[str]], bool]) -> Iterator[Row]:
    """Rows of a CSV file, whose cells may hold the delimiter and line ends inside quotes.

    A cell in quotes spans at most 40 lines. A row with a quote left open is wrong for itself; the next line is read
    anew. width: cells of a row; is_row: whether cells look like a row, which no line inside of quotes may.
    """
    waiting: deque[tuple[int, str]] = deque()
    source = numbered_lines(path, newline="")
    while True:
        taken: list[tuple[int, str]] = []

        def feed(taken: list[tuple[int, str]] = taken) -> Iterator[str]:
            while len(taken) < _MAX_RECORD_LINES:
                entry = waiting.popleft() if waiting else next(source, None)
                if entry is None:
                    return
                taken.append(entry)
                yield entry[1]

        problem = ""
        cells: list[str] | None = None
        try:
            cells = next(csv.reader(feed(), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            problem = "a quote is left open" if "end of data" in str(error) else str(error)
        if not taken:
            return
        number, line = taken[0]
        inner = [csv_cells(each, delimiter) for _, each in taken[1:]]
        is_whole = cells is None or len(cells) == width or (len(cells) > width and not any(cells[width:]))
        if inner and not problem and (any(map(is_row, inner)) or not is_whole):
            problem = "a quote is left open before the next row"
        if problem:
            waiting.extendleft(reversed(taken[1:]))
            plain = csv_cells(line, delimiter)  # quotes inside of a cell, as people write them
            if line.count('"') % 2 == 0 and len(plain) == width:
                cells = plain
            else:
                yield number, problem
                continue
        if cells:
            yield number, cells
