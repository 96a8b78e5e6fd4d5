"""Datasets on disk, read row by row into conversations with unique ids; each row is kept or dropped for a reason."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from csm_cli.data.columns import (
    AUDIO_SUFFIXES,
    ColumnChoice,
    Role,
    expected_columns,
    find_audio,
    find_columns,
    guess_columns,
    spelled_column,
    spells_out,
)
from csm_cli.data.dataset import (
    DatasetChunk,
    DatasetItem,
    DroppedClip,
    SpeakerNumbers,
    TrainingClip,
    TrainingConversation,
)
from csm_cli.data.discovery import DatasetFile, header_of
from csm_cli.data.packed import generated_turns
from csm_cli.data.parquet import ParquetTable
from csm_cli.data.tables import (
    Row,
    find_pairs,
    first_lines,
    json_lines,
    numbered_lines,
    plain_rows,
    quoted_rows,
    read_json_file,
    recording_beside,
    segment_rows,
)
from csm_cli.data.webdataset import open_shard
from csm_cli.errors import InputError, ScriptInvalid
from csm_cli.script import Manifest, read_script
from csm_cli.script.cells import DELIMITERS, csv_cells, split_cells
from csm_cli.script.cue_files import transcript_segments
from csm_cli.script.source import text_problem
from csm_cli.script.spoken_text import clean_text
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.untrusted import parse_json, read_regular
from csm_cli.types import Conversation, Recording

CHUNK_CLIPS = 256  # an interrupted run repeats at most one chunk
_AUDIO_FOLDERS = ("wavs", "wav", "clips", "audio")
_MAX_LIST_COLUMNS = 64  # each is compared with the text; lists of files have two to eight
_MAX_UNUSED = 20  # columns that a message names
_MAX_TEXT_BYTES = 64 << 10  # of a text file beside a recording
_LOG = logging.getLogger(__name__)


class _InvalidRow(Exception):
    """What is wrong with a row."""


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
    else:
        yield from reader.read(file)


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


@dataclass
class _Table:
    """A file whose rows are read. choice: of columns; is_list: it has no column names.

    folders: those beside it that may hold its audio; unused: names of columns that were reported.
    """

    path: Path
    choice: ColumnChoice
    is_list: bool = False
    folders: Sequence[str] = field(init=False)
    unused: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.folders = [name for name in _AUDIO_FOLDERS if (self.path.parent / name).is_dir()]

    def warn_of_unused(self, names: Iterable[str], columns: Mapping[Role, str]) -> None:
        new = [name for name in names if name.strip() and name not in columns.values() and name not in self.unused]
        if new and len(self.unused) < _MAX_UNUSED:
            shown = ", ".join(name[:40] for name in new[:_MAX_UNUSED])
            _LOG.warning("%s: columns that are not used: %s", self.path, shown + (" ..." if new[_MAX_UNUSED:] else ""))
            self.unused.update(new)


@dataclass(frozen=True)
class RowReader:
    """Reads datasets with one clip per row. columns: the user's choice of them."""

    speakers: SpeakerNumbers
    columns: ColumnChoice = field(default_factory=ColumnChoice)

    def read(self, file: DatasetFile) -> Iterator[DatasetItem]:
        """Every row of a file that is no script or manifest.

        Raises:
            InputError: it cannot be read, or has no audio or text column.
        """
        path = file.path
        if file.format == "parquet":
            return self._read_parquet(path)
        if file.format == "tar":
            return self._read_tar(path)
        if file.format == "pairs":
            return self._read_pairs(path)
        if file.format == "list":
            return self._read_list(path)
        if file.format == "table":
            rows: Iterator[Row] = self._table_rows(path)
        elif file.format == "lines":
            rows = json_lines(path)
        else:
            value = read_json_file(path)
            segments = transcript_segments(value)
            if segments is not None:
                rows = segment_rows(segments, recording_beside(path))
            else:
                rows = ((number, fields) for number, fields in enumerate(value if isinstance(value, list) else [], 1))
        return _convert(path, rows, partial(self._conversation, _Table(path, self.columns)))

    def _read_list(self, path: Path) -> Iterator[DatasetItem]:
        """A list without column names, as LJSpeech's `id|text|normalized text` with the audio in `wavs` beside it."""
        lines = [line for _, line in islice(numbered_lines(path, newline=""), 1000) if line.strip()]
        counts = {each: sum(each in line for line in lines) for each in "|\t;,"}
        delimiter = next((each for each in counts if counts[each] and counts[each] * 10 >= 9 * len(lines)), None)
        named = delimiter is None or (delimiter in ",;" and not any(map(_is_audio, csv_cells(lines[0], delimiter))))
        if named or not lines:
            names = csv_cells(lines[0], ",") if lines else []
            found = f" ({', '.join(name[:40] for name in names[:20])})" if names else ""
            expected = expected_columns(self.columns)
            raise InputError(
                f"{path}: the first line{found} names no audio and text columns; expected {expected},"
                " or --audio-column and --text-column"
            )
        assert delimiter
        is_quoted = delimiter in ",;"
        table = _Table(path, ColumnChoice(), is_list=True)
        sample = [(csv_cells if is_quoted else split_cells)(line, delimiter) for line in lines]
        width = max(len(cells) for cells in sample[:200])
        if width > _MAX_LIST_COLUMNS:
            raise InputError(f"{path}: has {width} columns and no names for them; expected at most {_MAX_LIST_COLUMNS}")
        first = [[cell.strip() for cell in cells] for cells in sample[:20]]
        known = {
            index
            for index in range(min(map(len, first)))
            if all(cells[index] and find_audio(path.parent, cells[index], table.folders) for cells in first)
        }
        roles = guess_columns(str(path), sample, known, self.columns)
        spelled = None if self.columns.text else spelled_column(sample, roles)
        used = {*roles.values(), spelled}
        unused = ", ".join(str(index + 1) for index in range(width) if index not in used)
        described = ", ".join(f"{role} {index + 1}" for role, index in sorted(roles.items(), key=lambda each: each[1]))
        described += f", the words spelled out {spelled + 1}" if spelled is not None else ""
        described += f"; not used: {unused}" if unused else ""
        _LOG.warning("%s: has no column names; its columns are %s", path, described)

        def convert(cells: Any, place: str) -> TrainingConversation:
            if not max(roles["audio"], roles["text"]) < len(cells) <= width:
                raise _InvalidRow(f"has {len(cells)} fields between {delimiter!r}; expected {width}")
            row: dict[str, Any] = {role: cells[index].strip() for role, index in roles.items() if index < len(cells)}
            if not row["audio"]:
                raise _InvalidRow(f"names no audio file in column {roles['audio'] + 1}")
            if spelled is not None and spelled < len(cells) and spells_out(row["text"], cells[spelled]):
                row["text"] = cells[spelled].strip() or row["text"]
            return self._conversation(table, row, place)

        rows = quoted_rows(path, delimiter, width, lambda _: False) if is_quoted else plain_rows(path, delimiter)
        return _convert(path, rows, convert)

    def _read_pairs(self, folder: Path) -> Iterator[DatasetItem]:
        for name, recording, text in find_pairs(folder):
            place = str(text or recording)
            if recording is None:
                yield DroppedClip(name, place, "no audio", "there is no recording of its name beside it")
            elif text is None:
                yield DroppedClip(name, place, "no text", "there is no .txt or .lab file of its name beside it")
            else:
                try:
                    words = _text(read_regular(text, _MAX_TEXT_BYTES).decode("utf-8-sig", "surrogateescape"))
                except (OSError, _InvalidRow) as problem:
                    yield DroppedClip(name, place, "invalid row", getattr(problem, "strerror", None) or str(problem))
                else:
                    clip = TrainingClip(self.speakers.default, " ".join(words.split()), Recording(recording), place)
                    yield TrainingConversation(name, (clip,))

    def _read_parquet(self, path: Path) -> Iterator[DatasetItem]:
        """Rows of a table, numbered from 1."""
        table = ParquetTable(path, self.columns.audio)
        roles = find_columns(table.columns, self.columns)
        if table.audio_column is None or "text" not in roles:
            raise InputError(f"{path}: has no audio and text columns; expected {expected_columns(self.columns)}")
        source = _Table(path, self.columns)
        is_generated = {"metadata", "seed"} <= set(table.columns)  # by csm batch
        if not is_generated:
            source.warn_of_unused(table.columns, roles)
        names = [name for name in roles.values() if name != table.audio_column or not table.has_audio_bytes]
        if not table.has_audio_bytes:
            return _convert(path, table.rows(names), partial(self._conversation, source))

        def convert(fields: Any, place: str) -> TrainingConversation:
            row = int(place.rpartition(":")[2])
            metadata = _json_fields(fields.pop("metadata", None)) if is_generated else {}
            if generated := self._generated(metadata, path, row, place):
                return generated
            conversation = self._conversation(source, {**fields, table.audio_column: str(row)}, place)
            return _in_row(conversation, path, row)

        return _convert(path, table.rows([*names, "metadata"] if is_generated else names), convert)

    def _read_tar(self, path: Path) -> Iterator[DatasetItem]:
        """Samples of a WebDataset, numbered from 1."""
        source = _Table(path, self.columns)

        def convert(fields: Any, place: str) -> TrainingConversation:
            number, key, audio = int(place.rpartition(":")[2]), fields.pop("__key__"), fields.pop("__audio__")
            if audio and (generated := self._generated(fields, path, number, place)):
                return generated
            named = find_columns(fields, replace(self.columns, audio=None)).get("audio")  # of a file elsewhere
            fields = {"id": key} | {name: value for name, value in fields.items() if name != named}
            if not audio:
                return self._conversation(source, fields, place)
            name = self.columns.audio or "audio"
            return _in_row(self._conversation(source, {**fields, name: Path(audio).name}, place), path, number)

        return _convert(path, open_shard(path).rows(), convert)

    def _generated(self, metadata: Any, path: Path, row: int, place: str) -> TrainingConversation | None:
        """An item that `csm batch` has packed: a clip for each turn, with its range of saved codes; None for others."""
        turns = generated_turns(metadata)
        if not turns:
            return None
        frames = [turn.get("frames", 0) for turn in turns]
        codec = metadata.get("codec")
        has_codes = isinstance(codec, str) and all(isinstance(count, int) and count > 0 for count in frames)
        clips = []
        for number, turn in enumerate(turns):
            span = (turn["start_s"], turn["end_s"]) if len(turns) > 1 else (None, None)
            clips.append(
                TrainingClip(
                    speaker=self.speakers.number(str(turn["speaker"]) if turn.get("speaker") is not None else None),
                    text=_text(turn["text"]),
                    recording=Recording(path, *span),
                    place=place if len(turns) == 1 else f"{place} turn {number + 1}",
                    row=row,
                    codec=codec if has_codes else "",
                    frames=(sum(frames[:number]), sum(frames[: number + 1])) if has_codes else (0, 0),
                )
            )
        return TrainingConversation(str(metadata.get("id") or place), tuple(clips))

    def _table_rows(self, path: Path) -> Iterator[Row]:
        suffix = path.suffix.lower()
        lines = first_lines(path)
        found = header_of(lines, suffix, self.columns)
        if found is None:
            names = csv_cells(lines[0], DELIMITERS.get(suffix, "|")) if lines else []
            shown = f" ({', '.join(name[:40] for name in names[:20])})" if names else ""
            expected = expected_columns(self.columns)
            raise InputError(f"{path}: the first line{shown} names no audio and text columns; expected {expected}")
        delimiter, header = found
        repeated = {name for name in header if name and header.count(name) > 1} if len(header) <= 1000 else set()
        columns = find_columns(header, self.columns)
        if doubled := repeated & set(columns.values()):
            raise InputError(f"{path}: has more than one column {min(doubled)!r}; rename one")
        index = header.index(columns["audio"]) if "audio" in columns else None
        is_row = partial(_is_audio_row, index, len(header))
        beside = None if index is not None else recording_beside(path)
        rows = quoted_rows(path, delimiter, len(header), is_row) if delimiter in ",;" else plain_rows(path, delimiter)
        names = list(header)
        if beside and suffix == ".tsv":  # Whisper's, in milliseconds
            names = [f"{name}_ms" if name in (columns["start"], columns["end"]) else name for name in header]
        is_header = False
        for place, cells in rows:
            if isinstance(cells, list) and not is_header:
                is_header = [cell.strip() for cell in cells] == header
                continue  # the header, and what precedes it
            if isinstance(cells, list):
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(header):
                    cells = f"has {len(cells)} cells, the header {len(header)}" if any(cells) else ""
                else:
                    cells = {names[number]: cell for number, cell in enumerate(cells) if cell and names[number]}
                    cells |= {"audio": beside.name} if beside else {}
            if cells:
                yield place, cells
        if not is_header:
            raise InputError(f"{path}: its first line cannot be read as the names of columns; write it anew")

    def _conversation(self, table: _Table, fields: Any, place: str) -> TrainingConversation:
        """The clip of a row, or the clips of a list of rows. Raises _InvalidRow."""
        if isinstance(fields, list):
            if not fields:
                raise _InvalidRow("is an empty list; expected clips")
            parts = [self._conversation(table, each, f"{place} {n}") for n, each in enumerate(fields, 1)]
            return TrainingConversation(place.rpartition(":")[2], tuple(part.clips[0] for part in parts))
        if not isinstance(fields, Mapping):
            raise _InvalidRow(f"is {fields!r:.40}; expected fields")
        present = {str(name): value for name, value in fields.items() if value is not None}
        columns = find_columns(present, table.choice)
        table.warn_of_unused(present, columns)
        row: dict[Role, Any] = {role: present[name] for role, name in columns.items()}
        audio = row.get("audio")
        audio = audio.get("path") if isinstance(audio, Mapping) else audio  # as `datasets` writes it
        if audio is not None and not isinstance(audio, str):
            raise _InvalidRow(f"audio is {audio!r:.40}; expected a file name")
        name = _text(audio)
        start, end, duration = _span(row)
        speaker, rate = row.get("speaker"), row.get("rate")
        try:
            rate = None if rate is None else int(rate)
        except (TypeError, ValueError, OverflowError):
            raise _InvalidRow(f"sampling rate is {rate!r:.40}; expected samples per second") from None
        recording = None
        if name:
            folder = table.path.parent
            missing = f"wavs/{name}.wav" if table.is_list and not _is_audio(name) else name
            file = find_audio(folder, name, table.folders) or folder / os.path.expanduser(missing)  # noqa: PTH111
            recording = Recording(file, start, end)
        clip = TrainingClip(
            speaker=self.speakers.number(None if speaker is None else str(speaker).strip() or None),
            text=_text(row.get("text")),
            recording=recording,
            place=place,
            duration=duration if end is None else None,
            rate=rate,
        )
        explicit = row.get("id")
        suffix = next((each for each in AUDIO_SUFFIXES if name.lower().endswith(each)), "")
        derived = name.removesuffix(name[len(name) - len(suffix) :]) if start is None else f"{name}@{start:g}"
        return TrainingConversation(str(explicit) if explicit is not None else derived or place, (clip,))


def _convert(
    path: Path, rows: Iterable[Row], convert: Callable[[Any, str], TrainingConversation]
) -> Iterator[DatasetItem]:
    """Each row as a conversation; invalid ones as dropped clips."""
    for where, fields in rows:
        place = f"{path}:{where}"
        try:
            if isinstance(fields, str):
                raise _InvalidRow(fields)
            yield convert(fields, place)
        except _InvalidRow as problem:
            yield DroppedClip("", place, "invalid row", str(problem))


def _in_row(conversation: TrainingConversation, path: Path, row: int) -> TrainingConversation:
    """The conversation with its recording in a row of a file."""
    clip = conversation.clips[0]
    assert clip.recording
    clip = replace(clip, recording=replace(clip.recording, path=path), row=row)
    return TrainingConversation(conversation.id, (clip,))


def _json_fields(text: Any) -> Mapping[str, Any]:
    try:
        value = parse_json(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return value if isinstance(value, Mapping) else {}


def _is_audio(cell: str) -> bool:
    return cell.strip().lower().endswith(AUDIO_SUFFIXES)


def _is_audio_row(audio: int | None, width: int, cells: Sequence[str]) -> bool:
    return audio is not None and len(cells) == width and _is_audio(cells[audio])


def _span(row: Mapping[Role, Any]) -> tuple[float | None, float | None, float | None]:
    """Start and end of the clip in its recording and its duration, all in seconds, as far as the row names them."""
    start, end, duration = (_seconds(row, "start"), _seconds(row, "end"), _seconds(row, "duration"))
    start = _seconds(row, "start_ms", 1000) if start is None else start
    start = _seconds(row, "offset") if start is None else start
    end = _seconds(row, "end_ms", 1000) if end is None else end
    if end is None and start is not None and duration is not None:
        end = start + duration
    if end is not None and end <= (start or 0.0):
        raise _InvalidRow(f"ends at {end:g} s, not after its start at {start or 0.0:g} s")
    return start, end, duration


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _InvalidRow(f"text is {value!r:.40}; expected text")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _InvalidRow("is not UTF-8; save the file as UTF-8")
    spoken = clean_text(value)
    if problem := text_problem(spoken):
        raise _InvalidRow(problem)
    return spoken.strip()


def _seconds(row: Mapping[Role, Any], role: Role, per_second: int = 1) -> float | None:
    value = row.get(role)
    if value is None:
        return None
    try:
        seconds = float(value) / per_second
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise _InvalidRow(f"{role} is {value!r:.40}; expected {'seconds' if per_second == 1 else 'milliseconds'}")
    return seconds
