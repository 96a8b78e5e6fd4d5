"""csm results: what became of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_json, log_line
from csm_cli.errors import UsageError
from csm_cli.report import format_count, format_duration
from csm_cli.storage.remote import local_name

if TYPE_CHECKING:
    from csm_cli.batch.overview import BatchOverview

_MAX_FAILURES = 20  # in the text; --csv and --json have all
_MAX_TEXT_CHARS = 60


def results(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder or URL that csm batch has written to.")],
    csv: Annotated[
        bool, typer.Option("--csv", help="Print a table of all items, with the manifest's columns.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print totals, failures and the slowest items as JSON.")] = False,
    slowest: Annotated[int, typer.Option("--slowest", metavar="N", min=0, help="How many of the slowest items.")] = 5,
) -> None:
    """Summarize a batch: totals, what failed and why, the slowest items.

    The batch may still be running.

    Examples:
      csm results out
      csm results out --csv > out.csv
    """
    from csm_cli.batch.overview import read_overview

    if csv and json:
        raise UsageError("--csv and --json both print the result; keep one")
    overview = read_overview(local_name(folder))
    for note in overview.notes:
        log_line(f"{overview.path}: {note}")
    if csv:
        emit_table(overview)
    elif json:
        emit_json(overview_record(overview, slowest))
    else:
        for line in overview_lines(overview, slowest):
            emit(line)


def emit_table(overview: BatchOverview) -> None:
    """Prints the CSV as it is: its cells may have line breaks."""
    print(overview.csv(), end="", flush=True)


def overview_record(overview: BatchOverview, slowest: int) -> dict[str, Any]:
    """The JSON object of a batch."""
    failures = [{**asdict(row), "warnings": list(row.warnings)} for row in overview.failures]
    slow = [
        {"id": row.id, "elapsed_s": row.elapsed_s, "duration_s": row.duration_s} for row in overview.slowest(slowest)
    ]
    return {
        "file": str(overview.path),
        **overview.totals(),
        "reasons": overview.reasons,
        "failures": failures,
        "slowest": slow,
        "notes": list(overview.notes),
    }


def overview_lines(overview: BatchOverview, slowest: int) -> Iterator[str]:
    """What a person reads of a batch."""
    totals = overview.totals()
    states = [f"{totals['ok']} ok", f"{totals['failed']} failed"]
    states += [f"{totals['with_warnings']} with warnings"] if totals["with_warnings"] else []
    states += [f"{totals['retried']} with several takes"] if totals["retried"] else []
    length = format_duration(totals["duration_s"])
    yield f"{format_count(totals['items'], 'item')}: {', '.join(states)}; {length} of audio"
    if levels := totals["lufs"]:
        yield f"loudness from {levels[0]:.1f} to {levels[1]:.1f} LUFS"
    failures = overview.failures
    if failures:
        yield "failed: " + ", ".join(f"{count} {name}" for name, count in overview.reasons.items())
    for row in failures[:_MAX_FAILURES]:
        text = " ".join(row.text.split())
        shown = f'"{text[:_MAX_TEXT_CHARS]}{"..." if len(text) > _MAX_TEXT_CHARS else ""}" ' if text else ""
        yield f"  {row.id}: {shown}{' '.join((row.error or 'no reason recorded').split())}"
    if len(failures) > _MAX_FAILURES:
        yield f"  and {len(failures) - _MAX_FAILURES} more; --csv has all"
    if slow := overview.slowest(slowest):
        yield "slowest, while others were decoded with them:"
    for row in slow:
        takes = f", {row.takes} takes" if row.takes > 1 else ""
        audio = f" for {row.duration_s:.1f} s of audio" if row.duration_s is not None else ""
        yield f"  {row.id}: {row.elapsed_s:.1f} s{audio}{takes}"
