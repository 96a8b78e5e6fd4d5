"""Hugging Face datasets as Parquet: a row's words and speaker, and its sound when it is listened to.

A column of sound is a struct of a sound file's `bytes` and its `path`; where it has no bytes, or is text, it names a
file beside the table. Words are read without the sounds; of the sounds one page of a row group is in memory at a time.
"""

from __future__ import annotations

import importlib.util
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from csm_cli.audio.io import AudioBytes
from csm_cli.data.clips import TrainingConversation
from csm_cli.data.rows import (
    AUDIO,
    COLUMNS,
    NAME,
    DatasetRows,
    RowReader,
    first_present,
    read_fields,
    resolve_beside,
    row_conversation,
)
from csm_cli.errors import AudioUnreadable, InputError
from csm_cli.types import Recording

SUFFIX = ".parquet"
_ROWS = 8  # whose sounds are taken from a page at once
_BUFFER = 2**20  # bytes read at once, where else a whole row group would be


def require_pyarrow(path: Path) -> None:
    """Raises InputError where it is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f'{path}: is Parquet, which needs pyarrow; pip install "csm-cli[parquet]"')


def read_parquet(path: Path, reading: RowReader) -> DatasetRows:
    """The rows of a table, numbered from 1.

    Raises:
        InputError: it cannot be read, or has no columns of sound and words.
    """
    file, sounds = _opened(path), _sounds(path)
    names = set(file.schema_arrow.names)
    if sounds.column is None or not names & set(reading.words):
        known = f"one of {', '.join(AUDIO)} and one of {', '.join(reading.words)}"
        raise InputError(f"{path}: has no columns of sound and words; expected {known}")
    columns = [name for name in (*COLUMNS, *reading.words) if name in names]
    inside = sounds.column if sounds.inside else None

    def talk(fields: Mapping[str, Any], place: str) -> TrainingConversation:
        row = int(place.rpartition(":")[2])
        if inside is None:
            return row_conversation(path, fields, place, reading)
        found = row_conversation(path, {name: fields[name] for name in fields if name not in AUDIO}, place, reading)
        clip = replace(found.clips[0], recording=Recording(path), row=row)
        return TrainingConversation(found.id if first_present(fields, NAME) is not None else str(row), (clip,))

    kept = [name for name in columns if name != inside]
    return read_fields(path, _fields(path, file, kept), talk)


def cell_audio(path: Path, row: int) -> AudioBytes | Path | None:
    """The sound of a row, counted from 1; None where it has none.

    Raises:
        AudioUnreadable: the table cannot be read there.
    """
    try:
        found = _sounds(path)[row - 1]
    except (OSError, ValueError, NotImplementedError, IndexError, InputError) as problem:
        raise AudioUnreadable(f"{path}: row {row} cannot be read ({problem})") from problem
    data, name = found.get("bytes"), found.get("path")
    if data is None:
        return resolve_beside(path, name) if name else None
    return AudioBytes(name or "its sound", data)


def _fields(path: Path, file: Any, columns: list[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    number = 0
    try:
        for batch in file.iter_batches(columns=columns, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield number, fields
    except (OSError, ValueError, NotImplementedError) as problem:
        raise _unreadable(path, problem) from problem


def _opened(path: Path) -> Any:
    """Raises InputError where it is no Parquet."""
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (OSError, ValueError, NotImplementedError) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> InputError:
    return InputError(f"{path}: cannot be read as Parquet ({problem}); download or write it again")


def _sounds(path: Path) -> _Sounds:
    stat = path.stat()
    return _latest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _latest(path: Path, *_: int) -> _Sounds:
    return _Sounds(path)


class _Sounds:
    """The sounds of a table, cheap in the order of its rows. column: their name; inside: the table has their bytes."""

    def __init__(self, path: Path) -> None:
        from pyarrow.types import is_struct

        self._file = _opened(path)
        schema, about = self._file.schema_arrow, self._file.metadata
        self.column = next((name for name in AUDIO if name in schema.names), None)
        kind = schema.field(self.column or 0).type
        self.inside = is_struct(kind) and kind.get_field_index("bytes") >= 0
        groups = (about.row_group(number).num_rows for number in range(about.num_row_groups))
        self._starts = [0, *accumulate(groups)]  # of each row group, and the end of the last
        self._group, self._next = -1, 0
        self._rows: Iterator[Any] = iter(())

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Raises IndexError past the end, and what pyarrow raises."""
        group = bisect_right(self._starts, row) - 1
        if group + 1 == len(self._starts):
            raise IndexError(f"there are {row} rows")
        if group != self._group or row < self._next:
            self._next, self._rows = self._starts[group], self._of(group)
        ahead, self._next, self._group = row - self._next, row + 1, -1
        found: dict[str, Any] | None = next(islice(self._rows, ahead, None)).as_py()
        self._group = group  # not where it failed: the next row is looked for from the start
        return found or {}

    def _of(self, group: int) -> Iterator[Any]:
        batches = self._file.iter_batches(_ROWS, row_groups=[group], columns=[self.column], use_threads=False)
        for batch in batches:
            yield from batch.column(0)
