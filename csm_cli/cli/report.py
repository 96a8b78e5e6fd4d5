"""--report: a run as a page to look at and listen to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli import __version__
from csm_cli.batch import Ledger
from csm_cli.errors import AudioUnreadable, OutputRefused
from csm_cli.storage.files import check_writable
from csm_cli.storage.paths import expand_path

if TYPE_CHECKING:
    from csm_cli.audio.io import Audio
    from csm_cli.report.page import ReportDetail

ReportFile = Annotated[
    str | None,
    typer.Option("--report", metavar="FILE", help="A page with players, pictures and stops.", rich_help_panel="Output"),
]
_RATE = 24000  # Hz, of pictures and of sound inside a page


def report_path(name: str | None) -> Path | None:
    """Where the page goes, checked before anything is loaded.

    Raises:
        OutputRefused: it cannot be written.
    """
    if name is None:
        return None
    path = expand_path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputRefused(f"--report {name}: is a page of HTML; name it as in report.html")
    check_writable(path)
    return path


def dialogue_report(path: Path, result: Mapping[str, Any], audio: Audio, title: str) -> None:
    """The page of one conversation, whose JSON object is `result`; its sound is inside unless it is very long."""
    from csm_cli.report import page as report

    inside = audio.duration <= report.EMBEDDED_SECONDS or result["output"] is None
    where = report.embed_audio(audio) if inside else report.link_audio(os.path.relpath(result["output"], path.parent))
    track = {
        "audio": where,
        "duration": audio.duration,
        **(report.spectrogram_png(audio, report.ReportDetail(640, 48)) or {}),
    }
    numbers = (
        ("turns", str(len(result["turns"]))),
        ("speech", _length(audio.duration)),
        ("warnings", str(len(result["warnings"]))),
        ("RTF", f"{result['rtf']:.2f}" if result["rtf"] else "-"),
    )
    page = report.ReportPage(title, _by(result), numbers, track=track)
    report.write_report(
        path, page, report.report_turn_rows(result, audio, report.ReportDetail.of(len(result["turns"])))
    )


def batch_report(path: Path, ledger: Ledger) -> None:
    """The page of all results of a folder, of this run or one before; with much sound, it plays the files beside it."""
    from csm_cli.report import page as report

    count, failed, warned, seconds, made = 0, 0, 0, 0.0, 0.0
    last: Mapping[str, Any] = {}
    for result in ledger.latest():
        good = result["status"] == "ok"
        count, failed, warned = count + 1, failed + (not good), warned + bool(result.get("warnings"))
        seconds += result.get("duration_s") or 0.0
        made += (result.get("rtf") or 0.0) * (result.get("duration_s") or 0.0)
        last = result if good else last
    rest = count - report.MAX_ROWS
    more = f"{rest} more are in {ledger.path.name}." if rest > 0 else ""
    numbers = (
        ("items", str(count)),
        ("failed", str(failed)),
        ("warned", str(warned)),
        ("speech", _length(seconds)),
        ("RTF", f"{made / seconds:.2f}" if made else "-"),
    )
    page = report.ReportPage(ledger.path.parent.resolve().name or "batch", _by(last), numbers, more)
    detail, inside = report.ReportDetail.of(min(count, report.MAX_ROWS)), seconds <= report.EMBEDDED_SECONDS
    results = islice(ledger.latest(), report.MAX_ROWS)
    rows = (report.report_row(each, **_sound(each, ledger.path.parent, path, detail, inside)) for each in results)
    report.write_report(path, page, rows)


def _sound(result: Mapping[str, Any], folder: Path, page: Path, detail: ReportDetail, inside: bool) -> dict[str, Any]:
    """The sound of a batch's item; none where its file is gone."""
    from csm_cli.audio.io import read_audio
    from csm_cli.report import page as report

    if result["status"] != "ok":
        return {}
    file = folder / str(result.get("file") or ".")
    try:
        audio = read_audio(file, _RATE)
    except AudioUnreadable as error:
        return {"warnings": [*(result.get("warnings") or ()), str(error)]}
    where = report.embed_audio(audio) if inside else report.link_audio(os.path.relpath(file, page.parent))
    return {"audio": where, "picture": report.spectrogram_png(audio, detail)}


def _by(result: Mapping[str, Any]) -> str:
    model = f"{result['model']} on {result['device']}, " if result else ""
    return f"{model}csm {__version__}. The speech is synthetic."


def _length(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.1f} s"
