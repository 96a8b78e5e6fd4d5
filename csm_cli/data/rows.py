"""Datasets of one clip a row, read row by row: audiofolder's metadata, NeMo's manifests, LJSpeech."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm_cli.data.clips import DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.errors import InputError
from csm_cli.script.source import text_problem
from csm_cli.types import Recording

# What a column may be called, the first that is there counts.
AUDIO = ("file_name", "audio_filepath", "audio", "audio_file_name", "path")
TEXT = ("text", "transcription", "transcript", "sentence")
SPEAKER = ("speaker_id", "speaker", "source", "client_id")
NAME = ("id", "custom_id")
RATE = ("sampling_rate", "sample_rate")
COLUMNS = (*AUDIO, *SPEAKER, *NAME, *RATE, "offset", "duration")  # and those of the words

DatasetRows = Iterator[TrainingConversation | DroppedClip]
_Fields = Iterator[tuple[int, Mapping[str, Any] | str]]
"""Line number, and the row's fields or what is wrong with it."""


class _Broken(Exception):
    """What is wrong with a row."""


@dataclass(frozen=True)
class RowReader:
    """What holds for all rows. words: what the column of the words may be called."""

    speakers: SpeakerNumbers
    words: tuple[str, ...] = TEXT


def read_rows(path: Path, reading: RowReader) -> DatasetRows:
    """The rows of a JSONL, CSV or TSV file with named columns; files in it are beside it.

    Raises:
        InputError: it cannot be read, or its header has no column of sound or words.
    """
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    rows = _json_rows(path) if delimiter is None else _table_rows(path, delimiter, reading)
    return read_fields(path, rows, lambda fields, place: row_conversation(path, fields, place, reading))


def read_ljspeech(path: Path, reading: RowReader) -> DatasetRows:
    """The rows `id|words|words spelled out` of LJSpeech's metadata.csv; clips are in `wavs` beside it.

    Raises:
        InputError: it cannot be read.
    """
    rows = ((number, {"row": line.rstrip("\r\n")}) for number, line in _lines(path) if line.strip())
    return read_fields(path, rows, lambda fields, place: _ljspeech(path, fields["row"].split("|"), place, reading))


def read_fields(
    path: Path, rows: _Fields, read: Callable[[Mapping[str, Any], str], TrainingConversation]
) -> DatasetRows:
    """Each numbered row as `read` takes it, broken ones as drops."""
    for number, fields in rows:
        place = f"{path}:{number}"
        try:
            if isinstance(fields, str):
                raise _Broken(fields)
            talk = read(fields, place)
        except _Broken as problem:
            yield DroppedClip("", place, "broken row", str(problem))
        else:
            yield talk


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; bytes that are not UTF-8 as surrogates."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a dataset's file or folder") from error


def _json_rows(path: Path) -> _Fields:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        yield number, fields if isinstance(fields, dict) else "is not a JSON object"


def _table_rows(path: Path, delimiter: str, reading: RowReader) -> _Fields:
    table = csv.reader((line for _, line in _lines(path)), delimiter=delimiter)
    header = [name.strip() for name in next(table, [])]
    if not _named(header, AUDIO) or not _named(header, reading.words):
        known = f"one of {', '.join(AUDIO)} and one of {', '.join(reading.words)}"
        raise InputError(f"{path}: the first line names no columns of sound and words; expected {known}")
    while True:
        try:
            cells = next(table, None)
        except csv.Error as problem:
            yield table.line_num, str(problem)
            continue
        if cells is None:
            return
        if len(cells) == len(header):
            yield table.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        elif cells:
            yield table.line_num, f"has {len(cells)} cells, the header {len(header)}"


def row_conversation(path: Path, fields: Mapping[str, Any], place: str, reading: RowReader) -> TrainingConversation:
    """The clip of a row; its file is beside `path`."""
    name = _audio(fields)
    offset, duration = _seconds(fields, "offset"), _seconds(fields, "duration")
    end = None if offset is None or duration is None else offset + duration
    label = first_present(fields, SPEAKER)
    clip = TrainingClip(
        speaker=reading.speakers.number(None if label is None else str(label).strip()),
        text=_text(first_present(fields, reading.words)),
        recording=Recording(resolve_beside(path, name), offset, end) if name else None,
        place=place,
        duration=duration if end is None else None,
        rate=_rate(fields),
    )
    given = first_present(fields, NAME)
    own = name.rpartition(".")[0] or name if offset is None else f"{name}@{offset:g}"
    return TrainingConversation(str(given) if given is not None else own or place, (clip,))


def _ljspeech(path: Path, cells: list[str], place: str, reading: RowReader) -> TrainingConversation:
    if len(cells) not in (2, 3):
        raise _Broken(f"has {len(cells)} parts between bars; expected id|words or id|words|words spelled out")
    name = cells[0].strip()
    if not name:
        raise _Broken("has no id before the first bar")
    folder = path.parent / "wavs"
    files = (folder / f"{name}{suffix}" for suffix in (".wav", ".flac"))
    recording = next((file for file in files if file.exists()), folder / f"{name}.wav")
    clip = TrainingClip(reading.speakers.unnamed, _text(cells[-1] or cells[1]), Recording(recording), place)
    return TrainingConversation(name, (clip,))


def _named(names: list[str], known: tuple[str, ...]) -> bool:
    return any(name in names for name in known)


def first_present(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """What a row says under the first of these names that it has."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _audio(fields: Mapping[str, Any]) -> str:
    """The file's name; `datasets` writes it as an object with a path, too."""
    value = first_present(fields, AUDIO)
    value = value.get("path") if isinstance(value, Mapping) else value
    if value is not None and not isinstance(value, str):
        raise _Broken(f"its sound is {value!r:.40}; expected a file's name")
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Broken(f"its words are {value!r:.40}; expected text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _Broken("is not UTF-8; save the file as UTF-8")
    if trouble := text_problem(value):
        raise _Broken(trouble)
    return value.strip()


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _Broken(f"{name} is {value!r:.40}; expected seconds")
    return seconds


def _rate(fields: Mapping[str, Any]) -> int | None:
    value = first_present(fields, RATE)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        raise _Broken(f"its rate is {value!r:.40}; expected samples per second") from None


def resolve_beside(path: Path, name: str) -> Path:
    """A file named in `path`."""
    return path.parent / os.path.expanduser(name)  # noqa: PTH111
