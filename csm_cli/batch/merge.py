"""The shards of a batch joined in one folder, as if one run had made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csm_cli.batch.ledger import LEDGER, Ledger
from csm_cli.errors import InputError
from csm_cli.storage.files import write_atomically

LedgerRecord = dict[str, Any]


def merge(folders: Sequence[Path], target: Path) -> tuple[int, int]:
    """Copies every folder's files and results to `target`; returns how many came out well and how many failed.

    What `target` already holds of the same fingerprint is left alone, so that an interrupted merge goes on. A failure
    counts only where no folder has the item well.

    Raises:
        InputError: a folder without results, a file that is gone, or two items with one file.
        UsageError: a folder is in use by another run.
        OutputRefused, OutputFailed: the target cannot be written.
    """
    found = [(folder, record) for folder in folders for record in _latest(folder)]
    chosen: dict[str, tuple[Path, LedgerRecord]] = {}
    for folder, record in sorted(found, key=lambda each: each[1]["status"] == "ok"):
        chosen[str(record["id"])] = folder, record
    _refuse_shared(chosen)
    with Ledger(target) as ledger:
        for name, (folder, record) in chosen.items():
            entry = ledger.entries.get(name)
            copied = entry and (entry.status, entry.fingerprint) == (record["status"], record.get("fingerprint"))
            if not copied or not _file(target, record).exists():
                ledger.append(_copied(record, folder, target))
    good = sum(record["status"] == "ok" for _, record in chosen.values())
    return good, len(chosen) - good


def _latest(folder: Path) -> list[LedgerRecord]:
    """The last result of each item."""
    if not (folder / LEDGER).is_file():
        raise InputError(f"{folder} has no {LEDGER}; name folders that csm batch has written to")
    with Ledger(folder) as ledger:
        return list(ledger.latest())


def _refuse_shared(chosen: dict[str, tuple[Path, LedgerRecord]]) -> None:
    owners: dict[str, str] = {}
    for name, (_, record) in chosen.items():
        owner = owners.setdefault(record["file"], name) if record["status"] == "ok" else name
        if owner != name:
            raise InputError(f'"{owner}" and "{name}" are both in a file {record["file"]}; nothing was merged')


def _copied(record: LedgerRecord, folder: Path, target: Path) -> LedgerRecord:
    """`record` as it is true of `target`, where its file is put."""
    if record["status"] != "ok":
        return record
    source, goal = _file(folder, record), _file(target, record)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}; run its shard again") from error
    write_atomically(goal, data)
    return record | {"output": str(goal)}


def _file(folder: Path, record: LedgerRecord) -> Path:
    return folder / str(record.get("file") or ".")
