"""What became of a batch, from its results.jsonl: read without its lock, as far as it can be read.

A run may be writing the file: an unfinished last line is passed over. Lines of earlier versions are read by the fields
that they have; what is no result is counted.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csm_cli.batch.ledger import LEDGER, SCHEMA
from csm_cli.errors import InputError
from csm_cli.storage.outputs import open_outputs
from csm_cli.storage.paths import expand_path
from csm_cli.storage.remote import is_url
from csm_cli.storage.untrusted import parse_json

MAX_LINE_BYTES = 16 << 20
COLUMNS = (
    "id",
    "status",
    "file",
    "speaker",
    "voice",
    "text",
    "duration_s",
    "elapsed_s",
    "lufs",
    "takes",
    "seed",
    "stop",
    "error_class",
    "error",
    "warnings",
)


@dataclass(frozen=True)
class ResultRow:
    """The newest result of an item. takes: that were generated, of its turn with the most. extra: of its manifest."""

    id: str
    status: str
    file: str = ""
    speaker: str = ""
    voice: str = ""
    text: str = ""
    duration_s: float | None = None
    elapsed_s: float | None = None
    lufs: float | None = None
    takes: int = 0
    seed: int | None = None
    stop: str = ""
    error_class: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> dict[str, Any]:
        """The values of `COLUMNS`."""
        return {name: getattr(self, name) for name in COLUMNS} | {"warnings": "; ".join(self.warnings)}


@dataclass(frozen=True)
class BatchOverview:
    """The rows of a results file, in the order in which items were first recorded; notes: on what could not be read."""

    path: str
    rows: Sequence[ResultRow]
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[ResultRow]:
        return [row for row in self.rows if row.status != "ok"]

    @property
    def reasons(self) -> dict[str, int]:
        """How many items failed for each class of error, the most frequent first."""
        return dict(Counter(row.error_class or "unknown" for row in self.failures).most_common())

    def slowest(self, count: int) -> list[ResultRow]:
        """By the time from an item's first prefill to its last sample; other items were decoded meanwhile."""
        timed = [row for row in self.rows if row.elapsed_s is not None]
        return sorted(timed, key=lambda row: -(row.elapsed_s or 0.0))[:count]

    def totals(self) -> dict[str, Any]:
        """Numbers over all items."""
        ok = [row for row in self.rows if row.status == "ok"]
        levels = [row.lufs for row in ok if row.lufs is not None]
        return {
            "items": len(self.rows),
            "ok": len(ok),
            "failed": len(self.rows) - len(ok),
            "with_warnings": sum(bool(row.warnings) for row in ok),
            "retried": sum(row.takes > 1 for row in self.rows),
            "duration_s": round(sum(row.duration_s or 0.0 for row in ok), 3),
            "lufs": [min(levels), max(levels)] if levels else None,
        }

    def csv(self) -> str:
        """A table with the columns of the manifest last."""
        extra = list(dict.fromkeys(name for row in self.rows for name in row.extra))
        names = {name: name if name not in COLUMNS else f"extra_{name}" for name in extra}
        text = io.StringIO()
        writer = csv.DictWriter(text, [*COLUMNS, *names.values()], lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(row.cells() | {names[name]: value for name, value in row.extra.items()})
        return text.getvalue()


def read_overview(folder: Path | str) -> BatchOverview:
    """The results of a folder, of its results.jsonl, or of a URL.

    Raises:
        InputError: there is no such file, it cannot be read, or it holds no results.
        UsageError: as `open_outputs`.
    """
    name = str(folder) if is_url(str(folder)) else str(expand_path(str(folder)))
    if not is_url(name) and Path(name).is_file():
        outputs, file_name = open_outputs(Path(name).parent), Path(name).name
    else:
        outputs, file_name = open_outputs(name.removesuffix(f"/{LEDGER}")), LEDGER
    path = outputs.location(outputs.folder / file_name)
    rows: dict[str, ResultRow] = {}
    foreign: list[int] = []
    older = 0
    unfinished = False
    try:
        with outputs.read_log(file_name) as file:
            for number, (line, complete) in enumerate(_lines(file), 1):
                record = _record(line)
                if record is None and not complete:
                    unfinished = True
                elif record is None:
                    foreign.append(number)
                else:
                    older += record.get("schema") != SCHEMA
                    row = _row(record)
                    rows[row.id] = row
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {LEDGER}; name a folder that csm batch has written to") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a folder that csm batch has written to") from error
    if foreign and not rows:
        raise InputError(f"{path}: holds no results of csm batch (line {foreign[0]} is none)")
    notes = []
    if unfinished:
        notes.append("the last line is unfinished; a run writes to it, or was stopped")
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        notes.append(f"line {foreign[0]}{more} cannot be read and was left out")
    if older:
        notes.append(f"{older} lines were written by another version of csm; some of their fields may be missing")
    return BatchOverview(path, list(rows.values()), tuple(notes))


def _lines(file: Any) -> Iterator[tuple[bytes, bool]]:
    """Lines, and whether they are complete; one that is too long is passed over in parts that are no results."""
    while line := file.readline(MAX_LINE_BYTES):
        if line.strip():
            yield line, line.endswith(b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    is_result = isinstance(record, dict) and "id" in record and record.get("status") in ("ok", "failed")
    return record if is_result else None


def _row(record: Mapping[str, Any]) -> ResultRow:
    """A result; fields of another type than they should have count as missing."""
    turns = [each for each in _list(record.get("turns")) if isinstance(each, dict)]
    loudness, extra, seed = record.get("loudness"), record.get("extra"), record.get("seed")
    tried = len(_list(record.get("seeds_tried")))
    return ResultRow(
        id=str(record["id"]),
        status=str(record["status"]),
        file=_text(record.get("file")),
        speaker=_distinct(turn.get("speaker") for turn in turns),
        voice=_distinct(turn.get("voice") for turn in turns),
        text="\n".join(_text(turn.get("text")) for turn in turns),
        duration_s=_number(record.get("duration_s")),
        elapsed_s=_number(record.get("elapsed_s")),
        lufs=_number(loudness.get("lufs")) if isinstance(loudness, dict) else None,
        takes=max([tried, *(len(_list(turn.get("takes"))) for turn in turns)]),
        seed=seed if isinstance(seed, int) else None,
        stop=_text(record.get("stop")),
        error_class=_text(record.get("error_class")),
        error=_text(record.get("error")),
        warnings=tuple(map(str, _list(record.get("warnings")))),
        extra=extra if isinstance(extra, dict) else {},
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _distinct(values: Iterator[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))
