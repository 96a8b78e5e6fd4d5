"""Parquet tables as Hugging Face writes them: rows without their audio, and the audio of one row when it is needed.

The audio column is a struct of an audio file's `bytes` and its `path`, or text; without bytes it names a file beside
the table. Other columns are read without the audio; of the audio, one page of a row group is in memory at a time.
"""

from __future__ import annotations

import importlib.util
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from csm_cli.audio.decoders import AudioBytes
from csm_cli.data.columns import ColumnChoice, find_columns
from csm_cli.errors import AudioUnreadable, InputError

SUFFIX = ".parquet"
CODES = "codes"  # column of `csm batch --save-codes`
_AUDIO_ROWS = 8  # rows whose audio is decoded from a page at once
_BUFFER_BYTES = 2**20  # without a buffer size pyarrow reads a whole row group


def require_pyarrow(path: Path) -> None:
    """Raises InputError where it is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f'{path}: is Parquet, which needs pyarrow; pip install "csm-cli[parquet]"')


def resolve_beside(path: Path, name: str) -> Path:
    """A file that a dataset file `path` names: absolute, under `~`, or relative to its folder."""
    return path.parent / os.path.expanduser(name)  # noqa: PTH111


class ParquetTable:
    """One table. columns: all names. audio_column: with audio or file names, or None; has_audio_bytes: a struct with
    embedded audio files. Audio is cheap to read in row order."""

    def __init__(self, path: Path, audio_column: str | None = None) -> None:
        """audio_column: the user's choice. Raises InputError where the file is not Parquet."""
        from pyarrow.parquet import ParquetFile
        from pyarrow.types import is_struct

        self._path = path
        try:
            self._file: Any = ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (OSError, ValueError, NotImplementedError) as problem:
            raise self._unreadable(problem) from problem
        schema, metadata = self._file.schema_arrow, self._file.metadata
        self.columns: list[str] = schema.names
        embedded = {
            field.name for field in schema if is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        }
        named = find_columns(schema.names, ColumnChoice(audio=audio_column)).get("audio")
        self.audio_column = next(iter(embedded)) if len(embedded) == 1 and audio_column is None else named
        self.has_audio_bytes = self.audio_column in embedded
        groups = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        self._group_starts = [0, *accumulate(groups)]  # and the end of the last group
        self._group, self._next_row = -1, 0
        self._cells: Iterator[tuple[Any, ...]] = iter(())
        self._last_row, self._last_cells = -1, list[Any]()

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Row number, from 1, and its fields in these columns. Raises InputError where the table is damaged."""
        number = 0
        try:
            for batch in self._file.iter_batches(columns=list(columns), use_threads=False):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
        except (OSError, ValueError, NotImplementedError) as problem:
            raise self._unreadable(problem) from problem

    def audio(self, row: int) -> AudioBytes | Path | None:
        """Audio of a row, counted from 1: embedded, or a file; None where the row has none.

        Raises:
            AudioUnreadable: the table cannot be read there.
        """
        try:
            cell = self._cells_of(row - 1)[0] or {}
        except (OSError, ValueError, NotImplementedError, IndexError) as problem:
            raise AudioUnreadable(f"{self._path}: row {row} cannot be read ({problem})") from problem
        data, name = cell.get("bytes"), cell.get("path")
        if data is None:
            return resolve_beside(self._path, name) if name else None
        return AudioBytes(name or "embedded audio", data)

    def codes(self, row: int) -> bytes | None:
        """The cell `codes` of a row, counted from 1. Raises OSError, ValueError, IndexError."""
        cells = self._cells_of(row - 1)
        return cells[1] if len(cells) > 1 and isinstance(cells[1], bytes) else None

    def _cells_of(self, row: int) -> list[Any]:
        """Raises IndexError past the end, and pyarrow's errors."""
        if row == self._last_row:
            return self._last_cells
        group = bisect_right(self._group_starts, row) - 1
        if group + 1 == len(self._group_starts):
            raise IndexError(f"there are {row} rows")
        if group != self._group or row < self._next_row:
            self._next_row, self._cells = self._group_starts[group], self._read_group(group)
        ahead, self._next_row, self._group = row - self._next_row, row + 1, -1
        cells = [each.as_py() for each in next(islice(self._cells, ahead, None))]
        self._group = group  # stays -1 after a failure, so that the next row starts over
        self._last_row, self._last_cells = row, cells
        return cells

    def _read_group(self, group: int) -> Iterator[tuple[Any, ...]]:
        columns = [self.audio_column, *([CODES] if CODES in self.columns else [])]
        for batch in self._file.iter_batches(_AUDIO_ROWS, row_groups=[group], columns=columns, use_threads=False):
            yield from zip(*(batch.column(name) for name in columns), strict=True)

    def _unreadable(self, problem: Exception) -> InputError:
        return InputError(f"{self._path}: cannot be read as Parquet ({problem}); download or write it again")


def open_table(path: Path) -> ParquetTable:
    """The table last used stays open. Raises InputError; OSError where there is no such file."""
    stat = path.stat()
    return _open_table(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _open_table(path: Path, *_: int) -> ParquetTable:
    return ParquetTable(path)
