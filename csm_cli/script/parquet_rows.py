"""Parquet tables as manifests: their rows as text, without columns of audio, lists or other nested values."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import IO

from csm_cli.errors import Diagnostic, ScriptInvalid

SUFFIX = ".parquet"


def parquet_rows(name: str, file: IO[bytes]) -> Iterator[tuple[int, list[str] | str]]:
    """Names of the columns as row 1, then each row that has a value, numbered from 2 as in a table of text.

    name: of the file, for messages.

    Raises:
        ScriptInvalid: pyarrow is not installed, or the file is not Parquet.
    """
    if importlib.util.find_spec("pyarrow") is None:
        message = 'is Parquet, which needs pyarrow; pip install "csm-cli[parquet]"'
        raise ScriptInvalid([Diagnostic(name, 0, 0, "", message)])
    from pyarrow.parquet import ParquetFile
    from pyarrow.types import is_binary, is_large_binary, is_nested

    def is_text(kind: object) -> bool:
        return not (is_nested(kind) or is_binary(kind) or is_large_binary(kind))

    try:
        with ParquetFile(file) as table:
            columns = [field.name for field in table.schema_arrow if is_text(field.type)]
            yield 1, columns
            number = 1
            for batch in table.iter_batches(1000, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    cells = ["" if row[each] is None else str(row[each]) for each in columns]
                    if any(cell.strip() for cell in cells):
                        yield number, cells
    except (OSError, ValueError, NotImplementedError) as problem:
        message = f"cannot be read as Parquet ({problem}); download or write it again"
        raise ScriptInvalid([Diagnostic(name, 0, 0, "", message)]) from problem
