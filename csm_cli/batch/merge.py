"""The outputs of several batches in one place: their files, or their shards under new numbers, and one ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from csm_cli.audio.subtitles import SUBTITLE_FORMATS
from csm_cli.batch.ledger import CODES_SUFFIX, LEDGER, Ledger, LedgerRecord
from csm_cli.errors import InputError
from csm_cli.storage.files import write_atomically
from csm_cli.storage.outputs import OutputStore
from csm_cli.storage.paths import contained_path, portable_name

_Found = tuple[OutputStore, LedgerRecord]


def merge_ledgers(sources: Sequence[OutputStore], target: OutputStore) -> tuple[int, int]:
    """Copies the files and results of all sources to `target`; returns how many items are ok and how many failed.

    Items that `target` has with the same fingerprint are skipped, so an interrupted merge can be repeated. A failure
    counts only if the item is ok in no source. A shard keeps its name where that is free, else it gets the next number.

    Raises:
        InputError: a source without results, a missing file, two items with one file, an item in the shards of two
            sources, or a file outside its folder.
        UsageError: a store is in use by another run.
        OutputRefused, OutputFailed: the target cannot be written.
    """
    found: list[_Found] = []
    for source in sources:
        name = source.location(source.folder)
        try:
            source.read_log(LEDGER).close()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{name} has no {LEDGER}; name folders that csm batch has written to") from error
        with Ledger(source) as ledger:
            found += ((source, record) for record in ledger.latest())
    found.sort(key=lambda each: each[1]["status"] == "ok")
    merged = {str(record["id"]): (source, record) for source, record in found}
    _check_shards(found, merged)
    owners: dict[str, str] = {}
    for name, (source, record) in merged.items():
        if record["status"] != "ok":
            continue
        for file in _files(record):
            contained_path(source.folder, file)  # before anything is written
            owner = name if "shard" in record else owners.setdefault(portable_name(target.folder / file), name)
            if owner != name:
                raise InputError(f'"{owner}" and "{name}" have the same file {file}; nothing was merged')
    with Ledger(target) as ledger:
        shards = _ShardCopies(ledger, merged)
        for name, (source, record) in merged.items():
            entry = ledger.entries.get(name)
            same = entry and (entry.status, entry.fingerprint) == (record["status"], record.get("fingerprint"))
            if record["status"] != "ok":
                if not same:
                    ledger.append(record)
            elif "shard" in record:
                copy = shards.copy(source, record["shard"])
                if not same or not entry or entry.shard != copy.name:
                    place = {"file": copy.name, "shard": copy.name, "output": target.location(copy)}
                    ledger.append(record | place, [copy])
            else:
                copies = {file: contained_path(target.folder, file) for file in _files(record)}
                if not same or not all(map(target.exists, copies.values())):
                    codes = str(Path(record["file"]).with_suffix(CODES_SUFFIX))
                    if source.exists(contained_path(source.folder, codes)):
                        copies[codes] = contained_path(target.folder, codes)
                    for file, copy in copies.items():
                        _copy(source, file, copy)
                    ledger.append(record | _places(record, target), list(copies.values()))
    ok = sum(record["status"] == "ok" for _, record in merged.values())
    return ok, len(merged) - ok


def _check_shards(found: Sequence[_Found], merged: Mapping[str, _Found]) -> None:
    """Raises InputError for an item whose shard would bring it a second time."""
    for source, record in found:
        other, newest = merged[str(record["id"])]
        if record["status"] == "ok" and other is not source and {"shard"} & (record.keys() | newest.keys()):
            places = f"{source.location(source.folder / record['file'])} and {other.location(other.folder)}"
            raise InputError(f'"{record["id"]}" is in {places}; shards can be merged if no item is in two of them')


def _files(record: LedgerRecord) -> list[str]:
    """An item's audio, or its shard, and its subtitles, below its folder.

    Raises:
        InputError: subtitles in a format that csm does not write.
    """
    formats = list(record.get("subtitles", ()))
    if unknown := [name for name in formats if name not in SUBTITLE_FORMATS]:
        raise InputError(f'"{record["id"]}" has subtitles in an unknown format: {unknown[0]}')
    return [record["file"], *(str(Path(record["file"]).with_suffix(f".{name}")) for name in formats)]


def _places(record: LedgerRecord, target: OutputStore) -> LedgerRecord:
    """Where people find an item's files in `target`."""
    output, *subtitles = (target.location(target.folder / file) for file in _files(record))
    places: LedgerRecord = {"output": output}
    return places | ({"subtitles": dict(zip(record["subtitles"], subtitles, strict=True))} if subtitles else {})


def _copy(source: OutputStore, file: str, copy: Path) -> None:
    path = contained_path(source.folder, file)
    try:
        data = source.read(path)
    except OSError as error:
        raise InputError(f"{source.location(path)}: {error.strerror}; run its shard again") from error
    write_atomically(copy, data)


class _ShardCopies:
    """Copies of shards in the folder of a ledger, each made once; those of an interrupted merge are found again."""

    def __init__(self, ledger: Ledger, merged: Mapping[str, _Found]) -> None:
        self._outputs = ledger.outputs
        self._copies: dict[tuple[int, str], Path] = {}
        self._taken = {entry.shard for entry in ledger.entries.values()}
        for name, (source, record) in merged.items():
            entry = ledger.entries.get(name)
            if "shard" in record and entry and entry.shard and entry.fingerprint == record.get("fingerprint"):
                copy = self._outputs.folder / entry.shard
                if self._outputs.exists(copy):
                    self._copies[id(source), record["shard"]] = copy

    def copy(self, source: OutputStore, shard: str) -> Path:
        key = id(source), shard
        if key not in self._copies:
            name = next(each for each in _names(shard) if each not in self._taken)
            self._taken.add(name)
            self._copies[key] = self._outputs.folder / name
            _copy(source, shard, self._copies[key])
        return self._copies[key]


def _names(name: str) -> Iterator[str]:
    """A name, and those with its last number counted up."""
    yield name
    parts = re.split(r"(\d+)(?=\D*$)", name)
    with suppress(ValueError):
        head, digits, tail = parts
        for number in range(int(digits) + 1, 10**9):
            yield f"{head}{number:0{len(digits)}d}{tail}"
