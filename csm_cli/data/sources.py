"""Datasets on disk, told apart by what lies there, and read in pieces of a like number of clips."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from csm_cli.data.clips import DatasetEntry, DroppedClip, TrainingConversation
from csm_cli.data.parquet import SUFFIX, read_parquet, require_pyarrow
from csm_cli.data.rows import AUDIO, DatasetRows, RowReader, read_ljspeech, read_rows
from csm_cli.data.scripts import read_dialogue, read_dialogues
from csm_cli.errors import InputError
from csm_cli.storage.fingerprint import fingerprint

CLIPS = 256  # of one piece: what a killed run does again is no more
FORMS = ("auto", "conversation", "audiofolder", "nemo", "ljspeech")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_TABLES = (".csv", ".tsv")
_YAML = (".yaml", ".yml")
_NEMO = ("audio_filepath", "file_name")
_DIALOGUE = ("turns", "messages")


@dataclass(frozen=True)
class DatasetPart:
    """One file of a dataset. name: begins the ids of what is in it."""

    name: str
    path: Path
    form: str


def find_datasets(sources: Sequence[Path], form: str = "auto") -> list[DatasetPart]:
    """The files that make up datasets, each of which is a file or a folder.

    Raises:
        InputError: no such file, or a folder in which there is no dataset.
    """
    names: set[str] = set()
    parts = []
    for source in sources:
        name = _name(source)
        while name in names:  # ids tell two datasets of one name apart
            name += "-2"
        names.add(name)
        parts += [replace(part, name=f"{name}{part.name}") for part in _parts(source, form)]
    return parts


def read_datasets(parts: Sequence[DatasetPart], reading: RowReader) -> DatasetRows:
    """Everything in them, under ids that no two share."""
    seen: set[str] = set()
    for part in parts:
        for item in _read(part, reading):
            if isinstance(item, DroppedClip):
                yield replace(item, id=part.name)
                continue
            talk = replace(item, id=part.name if part.form == "dialogue" else f"{part.name}/{item.id}")
            mark = fingerprint(talk.id, length=16)
            if mark in seen:
                yield DroppedClip(talk.id, talk.clips[0].place, "duplicate id", f'"{item.id}" stands further up, too')
            else:
                seen.add(mark)
                yield talk


def read_entries(items: DatasetRows, clips: int = CLIPS) -> Iterator[DatasetEntry]:
    """The items in pieces of so many clips, or one item that has more."""
    piece: DatasetEntry = []
    size = 0
    for item in items:
        more = len(item.clips) if isinstance(item, TrainingConversation) else 1
        if piece and size + more > clips:
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += more
    if piece:
        yield piece


def _read(part: DatasetPart, reading: RowReader) -> DatasetRows:
    if part.form == "ljspeech":
        return read_ljspeech(part.path, reading)
    if part.form == "dialogue":
        return read_dialogue(part.path)
    if part.form == "parquet":
        return read_parquet(part.path, reading)
    return read_dialogues(part.path) if part.form == "dialogues" else read_rows(part.path, reading)


def _name(source: Path) -> str:
    path = source.resolve()
    return path.parent.name if path.name in _METADATA else path.stem if path.is_file() else path.name


def _parts(source: Path, form: str) -> list[DatasetPart]:
    if not source.is_dir():
        return [DatasetPart("", source, _form(source, form))]
    files = sorted(path for name in _METADATA for path in source.rglob(name))
    tables = sorted(source.rglob(f"*{SUFFIX}"))
    if not files and tables:
        names = (table.relative_to(source).with_suffix("").as_posix() for table in tables)
        return [DatasetPart(f"/{name}", table, _form(table, form)) for name, table in zip(names, tables, strict=True)]
    if not files:
        hint = f"expected {' or '.join(_METADATA)} or *{SUFFIX} in it; or name a manifest or scripts"
        raise InputError(f"{source}: holds no dataset; {hint}")
    folders = (path.parent.relative_to(source).as_posix() for path in files)
    return [
        DatasetPart("" if folder == "." else f"/{folder}", path, _form(path, form))
        for path, folder in zip(files, folders, strict=True)
    ]


def _form(path: Path, form: str) -> str:
    """`rows`, `ljspeech`, `parquet`, `dialogue` or `dialogues`.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() == SUFFIX:
        require_pyarrow(path)
        return "parquet"
    if form in ("audiofolder", "nemo"):
        return "rows"
    if form == "ljspeech":
        return form
    if path.suffix.lower() in _YAML:
        return "dialogue"
    objects = _first_lines(path)
    if path.suffix.lower() in _TABLES:
        named = any(name in objects[0].replace("\t", ",").split(",") for name in AUDIO) if objects else True
        return "rows" if named or "|" not in objects[0] else "ljspeech"
    return _json_form(path, objects, form)


def _json_form(path: Path, lines: Sequence[str], form: str) -> str:
    """JSONL by its first lines, of which one may be a header; other JSON is a script."""
    rows = [row for row in map(_object, lines) if row is not None]
    if form == "auto" and (path.name in _METADATA or (rows and any(name in rows[0] for name in _NEMO))):
        return "rows"
    spread = len(rows) == len(lines) and any(name in row for row in rows for name in _DIALOGUE)
    return "dialogues" if spread else "dialogue"


def _object(line: str) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _first_lines(path: Path) -> list[str]:
    """The first two lines that hold something and are no comments."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = (line.strip() for line in file)
            return list(islice((line for line in lines if line and not line.startswith("#")), 2))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a dataset's file or folder") from error
