"""Files of datasets: found in folders, and their formats detected.

Formats: audiofolder (metadata.jsonl, .csv, .tsv), other tables with named columns, Common Voice, Hugging Face Parquet,
WebDataset tar files, NeMo manifests, lists of files without column names (LJSpeech, VITS, Piper), JSON arrays,
transcripts of Whisper, pairs of a recording and a text file, and csm's own scripts and manifests with recorded turns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from csm_cli.data.columns import ColumnChoice, find_columns
from csm_cli.data.parquet import SUFFIX, require_pyarrow
from csm_cli.data.tables import (
    find_pairs,
    first_lines,
    json_object,
    read_json_file,
)
from csm_cli.data.webdataset import SUFFIX as TAR
from csm_cli.errors import InputError
from csm_cli.script.cells import DELIMITERS, csv_cells, separator_of, split_cells
from csm_cli.script.cue_files import transcript_segments

DATASET_FORMATS = ("auto", "conversation", "audiofolder", "nemo", "ljspeech")
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_COMMON_VOICE = ("train.tsv", "validated.tsv")  # the second holds the first; only one of them is read
_TABLES = (".csv", ".tsv", ".jsonl", ".list")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetFile:
    """One file of a dataset. prefix: of the ids in it.

    format: table (named columns), list (no column names), lines or array (JSON), transcript, pairs (a folder), parquet,
    tar, script or manifest.
    """

    prefix: str
    path: Path
    format: str


def find_datasets(
    sources: Sequence[Path], format: str = "auto", choice: ColumnChoice | None = None
) -> list[DatasetFile]:
    """The files of datasets, each of which is a file or a folder.

    format: one of DATASET_FORMATS. choice: of columns, by which a table is known too.

    Raises:
        InputError: no such file, or a folder without a dataset.
    """
    choice = choice or ColumnChoice()
    prefixes: set[str] = set()
    files: list[DatasetFile] = []
    for source in sources:
        path = source.resolve()
        prefix = path.parent.name if path.name in _METADATA_FILES else path.stem if path.is_file() else path.name
        while prefix in prefixes:  # two datasets of one name
            prefix += "-2"
        prefixes.add(prefix)
        if not source.is_dir():
            files.append(DatasetFile(prefix, source, _detect_format(source, format, choice)))
            continue
        tables = _tables_of(source)
        if not tables:
            files.append(DatasetFile(prefix, source, "pairs"))
        for table in tables:
            inner = table.parent if table.name in _METADATA_FILES else table.with_suffix("")
            name = inner.relative_to(source).as_posix()
            is_only = len(tables) == 1 and table.parent == source and table.suffix not in (SUFFIX, TAR)
            full = prefix if name == "." or is_only else f"{prefix}/{name}"
            files.append(DatasetFile(full, table, _detect_format(table, format, choice)))
    return files


def _tables_of(folder: Path) -> list[Path]:
    """The tables of a dataset's folder; none where it holds pairs of a recording and a text file.

    Raises:
        InputError: it holds no dataset, or several tables of unknown names.
    """
    if tables := sorted(file for name in _METADATA_FILES for file in folder.rglob(name)):
        return tables
    for suffix in (SUFFIX, TAR):
        if tables := sorted(folder.rglob(f"*{suffix}")):
            return tables
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _TABLES and file.is_file())
    common = [folder / name for name in _COMMON_VOICE if folder / name in found]
    if common and (folder / "clips").is_dir():
        others = [file.name for file in found if file != common[0]]
        if others:
            _LOG.warning("%s is read, %s not; name a file to read another", common[0], ", ".join(others))
        return common[:1]
    if len(found) == 1:
        return found
    if not found and find_pairs(folder):
        return []
    if found:
        names = ", ".join(file.name for file in found[:10])
        raise InputError(f"{folder}: holds several tables ({names}); name the ones to read")
    expected = f"expected {' or '.join(_METADATA_FILES)}, *{SUFFIX}, *{TAR}, or recordings with a .txt file each"
    raise InputError(f"{folder}: holds no dataset; {expected}; or name a manifest or scripts")


def _detect_format(path: Path, format: str, choice: ColumnChoice) -> str:
    """Raises InputError where the file cannot be read."""
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        require_pyarrow(path)
        return "parquet"
    if suffix in (".yaml", ".yml"):
        return "script"
    if suffix == TAR:
        return "tar"
    if format == "ljspeech":
        return "list"
    lines = first_lines(path)
    if suffix in (*DELIMITERS, ".txt", ".list", ".lst"):
        return "table" if format in ("audiofolder", "nemo") or header_of(lines, suffix, choice) else "list"
    if format in ("audiofolder", "nemo"):
        return "lines"
    # JSONL is known by its first two lines, of which one may be a header.
    objects = [fields for fields in map(json_object, lines) if fields is not None]
    is_nemo = bool(objects) and {"audio_filepath", "file_name"} & objects[0].keys()
    if format == "auto" and (path.name in _METADATA_FILES or is_nemo):
        return "lines"
    if len(objects) == len(lines) and any(name in fields for fields in objects for name in ("turns", "messages")):
        return "manifest"
    if format == "auto" and suffix == ".json":
        return _detect_json(path, choice)
    first = objects[0] if objects and format == "auto" else {}
    is_row = {"audio", "text"} <= find_columns(first, choice).keys()
    return "lines" if is_row and not {"speaker", "csm", "context"} & first.keys() else "script"


def _detect_json(path: Path, choice: ColumnChoice) -> str:
    try:
        value = read_json_file(path)
    except InputError:
        return "script"  # whose reader says where it is wrong
    if transcript_segments(value) is not None:
        return "transcript"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        first = first[0] if first else None
    if not isinstance(first, Mapping) or "role" in first:
        return "script"
    return "array" if "audio" in find_columns(map(str, first), choice) else "script"


def header_of(lines: Sequence[str], suffix: str, choice: ColumnChoice) -> tuple[str, list[str]] | None:
    """The delimiter and the column names of a table; None where its first line names no audio and text columns."""
    for line in lines[:2]:  # the first may be Excel's `sep=;`
        usual = DELIMITERS.get(suffix, "|")
        for delimiter in dict.fromkeys((usual, ",", ";", "\t", "|")):
            names = [name.strip() for name in (csv_cells if delimiter in ",;" else split_cells)(line, delimiter)]
            columns = find_columns(names, choice)
            is_transcript = {"start", "end", "text"} <= columns.keys()  # Whisper's own table
            if "text" in columns and ("audio" in columns or is_transcript):
                return delimiter, names
        if separator_of(line) is None:
            break
    return None
