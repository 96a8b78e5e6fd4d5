"""Datasets on disk: their format is detected, and they are read row by row into conversations with unique ids.

Formats: audiofolder (metadata.jsonl, .csv, .tsv), Hugging Face Parquet, NeMo manifests, LJSpeech, and csm's own scripts
and manifests with recorded turns.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from csm_cli.data.dataset import (
    AUDIO_COLUMNS,
    DatasetChunk,
    DatasetItem,
    DroppedClip,
    SpeakerNumbers,
    TrainingClip,
    TrainingConversation,
)
from csm_cli.data.parquet import SUFFIX, ParquetTable, require_pyarrow, resolve_beside
from csm_cli.errors import InputError, ScriptInvalid
from csm_cli.script import Manifest, read_script
from csm_cli.script.source import text_problem
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.untrusted import parse_json
from csm_cli.types import Conversation, Recording

DATASET_FORMATS = ("auto", "conversation", "audiofolder", "nemo", "ljspeech")
CHUNK_CLIPS = 256  # an interrupted run repeats at most one chunk
# Names of columns; the first that exists is used.
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence")
SPEAKER_COLUMNS = ("speaker_id", "speaker", "source", "client_id")
ID_COLUMNS = ("id", "custom_id")
RATE_COLUMNS = ("sampling_rate", "sample_rate")
_OTHER_COLUMNS = (*AUDIO_COLUMNS, *SPEAKER_COLUMNS, *ID_COLUMNS, *RATE_COLUMNS, "offset", "duration")
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

_Rows = Iterator[tuple[int, Mapping[str, Any] | str]]
"""Line number, and the row's fields or what is wrong with it."""


class _InvalidRow(Exception):
    """What is wrong with a row."""


@dataclass(frozen=True)
class DatasetFile:
    """One file of a dataset. prefix: of the ids in it; format: rows, ljspeech, parquet, script or manifest."""

    prefix: str
    path: Path
    format: str


def find_datasets(sources: Sequence[Path], format: str = "auto") -> list[DatasetFile]:
    """The files of datasets, each of which is a file or a folder. format: one of DATASET_FORMATS.

    Raises:
        InputError: no such file, or a folder without a dataset.
    """
    prefixes: set[str] = set()
    files: list[DatasetFile] = []
    for source in sources:
        path = source.resolve()
        prefix = path.parent.name if path.name in _METADATA_FILES else path.stem if path.is_file() else path.name
        while prefix in prefixes:  # two datasets of one name
            prefix += "-2"
        prefixes.add(prefix)
        if not source.is_dir():
            files.append(DatasetFile(prefix, source, _detect_format(source, format)))
            continue
        tables = sorted(file for name in _METADATA_FILES for file in source.rglob(name))
        names = [table.parent.relative_to(source).as_posix() for table in tables]
        if not tables:
            tables = sorted(source.rglob(f"*{SUFFIX}"))
            names = [table.relative_to(source).with_suffix("").as_posix() for table in tables]
        if not tables:
            expected = f"expected {' or '.join(_METADATA_FILES)} or *{SUFFIX} in it; or name a manifest or scripts"
            raise InputError(f"{source}: holds no dataset; {expected}")
        for name, table in zip(names, tables, strict=True):
            inner = prefix if name == "." else f"{prefix}/{name}"
            files.append(DatasetFile(inner, table, _detect_format(table, format)))
    return files


def _detect_format(path: Path, format: str) -> str:
    """Raises InputError where the file cannot be read."""
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        require_pyarrow(path)
        return "parquet"
    if format in ("audiofolder", "nemo"):
        return "rows"
    if format == "ljspeech":
        return format
    if suffix in (".yaml", ".yml"):
        return "script"
    lines = _first_lines(path)
    if suffix in _DELIMITERS:
        named = not lines or any(name in lines[0].replace("\t", ",").split(",") for name in AUDIO_COLUMNS)
        return "rows" if named or "|" not in lines[0] else "ljspeech"
    # JSONL is known by its first two lines, of which one may be a header; other JSON is a script.
    objects = [fields for fields in map(_json_object, lines) if fields is not None]
    is_nemo = bool(objects) and any(name in objects[0] for name in ("audio_filepath", "file_name"))
    if format == "auto" and (path.name in _METADATA_FILES or is_nemo):
        return "rows"
    conversations = any(name in fields for fields in objects for name in ("turns", "messages"))
    return "manifest" if conversations and len(objects) == len(lines) else "script"


def _first_lines(path: Path) -> list[str]:
    """The first two lines that are neither empty nor comments."""
    lines = (line.strip() for _, line in _numbered_lines(path))
    return list(islice((line for line in lines if line and not line.startswith("#")), 2))


def read_datasets(files: Sequence[DatasetFile], reader: RowReader) -> Iterator[DatasetItem]:
    """All conversations, with ids that are unique over all datasets; a second item of the same id is dropped."""
    seen: set[str] = set()
    for file in files:
        for item in _read_file(file, reader):
            if isinstance(item, DroppedClip):
                yield replace(item, id=file.prefix)
                continue
            unique = replace(item, id=file.prefix if file.format == "script" else f"{file.prefix}/{item.id}")
            digest = fingerprint(unique.id, length=16)
            if digest in seen:
                place = unique.clips[0].place
                yield DroppedClip(unique.id, place, "duplicate id", f'an earlier row has the id "{item.id}"')
            else:
                seen.add(digest)
                yield unique


def _read_file(file: DatasetFile, reader: RowReader) -> Iterator[DatasetItem]:
    if file.format == "script":
        yield _read_script(file.path)
    elif file.format == "manifest":
        for number, item in Manifest(file.path).lines():
            yield _from_script(item, f"{file.path}:{number}")
    elif file.format == "ljspeech":
        yield from reader.read_ljspeech(file.path)
    elif file.format == "parquet":
        yield from reader.read_parquet(file.path)
    else:
        yield from reader.read_rows(file.path)


def split_chunks(items: Iterator[DatasetItem], clips: int = CHUNK_CLIPS) -> Iterator[DatasetChunk]:
    """Chunks of up to so many clips, or of one item that has more."""
    chunk: DatasetChunk = []
    size = 0
    for item in items:
        count = len(item.clips) if isinstance(item, TrainingConversation) else 1
        if chunk and size + count > clips:
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += count
    if chunk:
        yield chunk


def _read_script(path: Path) -> DatasetItem:
    try:
        conversation: Conversation | ScriptInvalid = read_script(path)
    except ScriptInvalid as invalid:
        conversation = invalid
    return _from_script(conversation, str(path))


def _from_script(conversation: Conversation | ScriptInvalid, place: str) -> DatasetItem:
    if isinstance(conversation, ScriptInvalid):
        first, more = conversation.diagnostics[0], len(conversation.diagnostics) - 1
        detail = f"{first.path}: {first.message}" if first.path else first.message
        detail += f"; and {more} more, run csm check for all" if more else ""
        return DroppedClip("", first.location if first.line else place, "invalid row", detail)
    clips = [
        TrainingClip(turn.speaker, turn.text.strip(), turn.recording, f"{place} {kind} {number}", trained)
        for kind, turns, trained in (("context", conversation.context, False), ("turn", conversation.turns, True))
        for number, turn in enumerate(turns, 1)
    ]
    return TrainingConversation(conversation.id, tuple(clips))


@dataclass(frozen=True)
class RowReader:
    """Reads datasets with one clip per row. text_columns: possible names of the text column."""

    speakers: SpeakerNumbers
    text_columns: tuple[str, ...] = TEXT_COLUMNS

    def read_rows(self, path: Path) -> Iterator[DatasetItem]:
        """Rows of a JSONL, CSV or TSV file with named columns.

        Raises:
            InputError: it cannot be read, or its header has no audio or text column.
        """
        delimiter = _DELIMITERS.get(path.suffix.lower())
        rows = _json_rows(path) if delimiter is None else self._table_rows(path, delimiter)
        return _convert(path, rows, lambda fields, place: self._conversation(path, fields, place))

    def read_ljspeech(self, path: Path) -> Iterator[DatasetItem]:
        """Rows `id|text|normalized text` of LJSpeech's metadata.csv; the audio files are in `wavs` beside it.

        Raises:
            InputError: it cannot be read.
        """
        rows = ((number, {"row": line.rstrip("\r\n")}) for number, line in _numbered_lines(path) if line.strip())

        def convert(fields: Mapping[str, Any], place: str) -> TrainingConversation:
            cells = fields["row"].split("|")
            if len(cells) not in (2, 3):
                raise _InvalidRow(f"has {len(cells)} fields between |; expected id|text or id|text|normalized text")
            name = cells[0].strip()
            if not name:
                raise _InvalidRow("has no id before the first |")
            candidates = [path.parent / "wavs" / f"{name}{suffix}" for suffix in (".wav", ".flac")]
            recording = next((file for file in candidates if os.path.exists(file)), candidates[0])  # noqa: PTH110, any string
            text = _text(cells[-1] or cells[1])
            clip = TrainingClip(self.speakers.default, text, Recording(recording), place)
            return TrainingConversation(name, (clip,))

        return _convert(path, rows, convert)

    def read_parquet(self, path: Path) -> Iterator[DatasetItem]:
        """Rows of a table, numbered from 1.

        Raises:
            InputError: it cannot be read, or has no audio or text column.
        """
        table = ParquetTable(path)
        names = set(table.columns)
        if table.audio_column is None or not names & set(self.text_columns):
            raise InputError(f"{path}: has no audio and text columns; expected {self._expected_columns}")
        columns = [name for name in (*_OTHER_COLUMNS, *self.text_columns) if name in names]
        if not table.has_audio_bytes:
            return _convert(path, table.rows(columns), lambda fields, place: self._conversation(path, fields, place))

        def convert(fields: Mapping[str, Any], place: str) -> TrainingConversation:
            without_audio = {name: value for name, value in fields.items() if name not in AUDIO_COLUMNS}
            conversation = self._conversation(path, without_audio, place)
            row = place.rpartition(":")[2]
            clip = replace(conversation.clips[0], recording=Recording(path), row=int(row))
            has_id = _first_value(fields, ID_COLUMNS) is not None
            return TrainingConversation(conversation.id if has_id else row, (clip,))

        return _convert(path, table.rows([name for name in columns if name != table.audio_column]), convert)

    @property
    def _expected_columns(self) -> str:
        return f"one of {', '.join(AUDIO_COLUMNS)} and one of {', '.join(self.text_columns)}"

    def _table_rows(self, path: Path, delimiter: str) -> _Rows:
        lines = (line for _, line in _numbered_lines(path))
        parts = (part for line in lines for part in io.StringIO(line, newline=""))  # a carriage return ends a line too
        table = csv.reader(parts, delimiter=delimiter)
        try:
            header = [name.strip() for name in next(table, [])]
        except csv.Error as error:
            raise InputError(f"{path}: its first line is not a row of a table ({error})") from error
        if not {*header} & {*AUDIO_COLUMNS} or not {*header} & {*self.text_columns}:
            expected = self._expected_columns
            raise InputError(f"{path}: the first line names no audio and text columns; expected {expected}")
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

    def _conversation(self, path: Path, fields: Mapping[str, Any], place: str) -> TrainingConversation:
        """The clip of a row. Raises _InvalidRow."""
        audio = _first_value(fields, AUDIO_COLUMNS)
        audio = audio.get("path") if isinstance(audio, Mapping) else audio  # as `datasets` writes it
        if audio is not None and not isinstance(audio, str):
            raise _InvalidRow(f"audio is {audio!r:.40}; expected a file name")
        name = _text(audio)
        offset, duration = _seconds(fields, "offset"), _seconds(fields, "duration")
        end = None if offset is None or duration is None else offset + duration
        speaker, rate = _first_value(fields, SPEAKER_COLUMNS), _first_value(fields, RATE_COLUMNS)
        try:
            rate = None if rate is None else int(rate)
        except (TypeError, ValueError, OverflowError):
            raise _InvalidRow(f"sampling rate is {rate!r:.40}; expected samples per second") from None
        clip = TrainingClip(
            speaker=self.speakers.number(None if speaker is None else str(speaker).strip()),
            text=_text(_first_value(fields, self.text_columns)),
            recording=Recording(resolve_beside(path, name), offset, end) if name else None,
            place=place,
            duration=duration if end is None else None,
            rate=rate,
        )
        explicit = _first_value(fields, ID_COLUMNS)
        derived = name.rpartition(".")[0] or name if offset is None else f"{name}@{offset:g}"
        return TrainingConversation(str(explicit) if explicit is not None else derived or place, (clip,))


def _convert(
    path: Path, rows: _Rows, convert: Callable[[Mapping[str, Any], str], TrainingConversation]
) -> Iterator[DatasetItem]:
    """Each numbered row as a conversation; invalid ones as dropped clips."""
    for number, fields in rows:
        place = f"{path}:{number}"
        try:
            if isinstance(fields, str):
                raise _InvalidRow(fields)
            yield convert(fields, place)
        except _InvalidRow as problem:
            yield DroppedClip("", place, "invalid row", str(problem))


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends, numbered from 1; bytes that are not UTF-8 become surrogates."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a dataset's file or folder") from error


def _json_rows(path: Path) -> _Rows:
    for number, line in _numbered_lines(path):
        if line.strip():
            fields = _json_object(line)
            yield number, "is not a JSON object" if fields is None else fields


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        fields = parse_json(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _first_value(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """A row's value in the first of these columns that has one."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _InvalidRow(f"text is {value!r:.40}; expected text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _InvalidRow("is not UTF-8; save the file as UTF-8")
    if problem := text_problem(value):
        raise _InvalidRow(problem)
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
        raise _InvalidRow(f"{name} is {value!r:.40}; expected seconds")
    return seconds
