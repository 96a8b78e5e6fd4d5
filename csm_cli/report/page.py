"""The HTML report: players, waveforms, spectrograms and stop reasons on one page that needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli import __version__
from csm_cli.audio.io import Audio, read_audio
from csm_cli.errors import InputError
from csm_cli.report import format_duration
from csm_cli.storage.files import atomic_file
from csm_cli.storage.paths import contained_path

MAX_EMBEDDED_SECONDS = 1800.0  # of audio in a page; with more, the page links to the audio files
MAX_ROWS = 10_000
_RATE = 24000  # Hz, of batch audio in pictures and inside a page
_FFT_SAMPLES = 1024
_MAX_HZ = 8000.0
_DYNAMIC_RANGE = 70.0  # dB below the loudest that a spectrogram shows
# Stop reasons as the page shows them; others are shown as they are.
_STOP_TEXTS = {"eos": "complete", "cap": "max duration", "silence": "silence", "repeat": "repeated sound"}

Json = dict[str, Any]


@dataclass(frozen=True)
class ReportDetail:
    """Resolution of a spectrogram: maximum columns, and frequency bands."""

    columns: int
    bands: int

    @classmethod
    def for_rows(cls, rows: int) -> ReportDetail:
        """Keeps all pictures of a page within about ten megabytes."""
        return cls(320, 48) if rows <= 300 else cls(120, 32) if rows <= 2000 else cls(60, 16)


@dataclass(frozen=True)
class ReportPage:
    """byline: model and version. numbers: name and value pairs. footnote: what was left out. track: of all turns."""

    title: str
    byline: str
    numbers: tuple[tuple[str, str], ...] = ()
    footnote: str = ""
    track: Mapping[str, Any] | None = None


def write_conversation_report(path: Path, result: Mapping[str, Any], audio: Audio, title: str) -> None:
    """The report of one conversation. result: its JSON record; the audio is embedded unless it is very long.

    Raises:
        OutputRefused, OutputFailed: as `atomic_file`.
    """
    embed = audio.duration <= MAX_EMBEDDED_SECONDS or result["output"] is None
    source = embed_audio(audio) if embed else link_audio(os.path.relpath(result["output"], path.parent))
    track = {
        "audio": source,
        "duration": audio.duration,
        **(spectrogram(audio, ReportDetail(640, 48)) or {}),
    }
    numbers = (
        ("turns", str(len(result["turns"]))),
        ("audio", format_duration(audio.duration)),
        ("warnings", str(len(result["warnings"]))),
        ("RTF", f"{result['rtf']:.2f}" if result["rtf"] else "-"),
    )
    page = ReportPage(title, _byline(result), numbers, track=track)
    write_report(path, page, report_turn_rows(result, audio, ReportDetail.for_rows(len(result["turns"]))))


def write_batch_report(path: Path, latest: Callable[[], Iterable[Mapping[str, Any]]], ledger: Path) -> None:
    """The report of a batch. latest: yields the newest result of each item; ledger: the results file beside the audio.

    With much audio, the page links to the files.

    Raises:
        OutputRefused, OutputFailed: as `atomic_file`.
    """
    count, failed, warned, seconds = 0, 0, 0, 0.0
    last: Mapping[str, Any] = {}
    for result in latest():
        good = result["status"] == "ok"
        count, failed, warned = count + 1, failed + (not good), warned + bool(result.get("warnings"))
        seconds += result.get("duration_s") or 0.0
        last = result if good else last
    footnote = f"{count - MAX_ROWS} more are in {ledger.name}." if count > MAX_ROWS else ""
    numbers = (("items", count), ("failed", failed), ("with warnings", warned), ("audio", format_duration(seconds)))
    title = ledger.parent.resolve().name or "batch"
    page = ReportPage(title, _byline(last), tuple((name, str(value)) for name, value in numbers), footnote)
    detail, embed = ReportDetail.for_rows(min(count, MAX_ROWS)), seconds <= MAX_EMBEDDED_SECONDS
    rows = (_item_row(result, ledger.parent, path, detail, embed) for result in islice(latest(), MAX_ROWS))
    write_report(path, page, rows)


def _item_row(result: Mapping[str, Any], folder: Path, page: Path, detail: ReportDetail, embed: bool) -> Json:
    """The row of a batch item; without audio if it failed or its file is missing."""
    if result["status"] != "ok":
        return report_row(result)
    try:
        file = contained_path(folder, result.get("file"))
        audio = read_audio(file, _RATE)
    except InputError as error:  # also where the file is missing or unreadable
        return report_row(result, warnings=[*(result.get("warnings") or ()), str(error)])
    source = embed_audio(audio) if embed else link_audio(os.path.relpath(file, page.parent))
    return report_row(result, audio=source, picture=spectrogram(audio, detail))


def report_row(record: Mapping[str, Any], **audio: Any) -> Json:
    """A row of the page: a turn of a result, or a batch item.

    audio: `audio`, its URL; `picture`, from `spectrogram`; `from` and `to`, seconds in the track; they replace
    fields of the row.
    """
    turns = record.get("turns") or [record]
    failed = record.get("status") == "failed"
    stop = str(record.get("stop") or "")
    return {
        "id": str(record.get("id") or ""),
        "speaker": ", ".join(dict.fromkeys(str(turn.get("speaker") or "") for turn in turns)),
        "text": "\n".join(str(turn.get("text") or "") for turn in turns),
        "status": "failed" if failed else "ok",
        "stop": "failed" if failed else _STOP_TEXTS.get(stop, stop),
        "seed": record.get("seed"),
        "duration": record.get("duration_s"),
        "takes": max((len(turn.get("takes") or ()) for turn in turns), default=0),
        "warnings": [str(record["error"])] if failed else list(record.get("warnings") or ()),
        **audio,
    }


def report_turn_rows(result: Mapping[str, Any], audio: Audio, detail: ReportDetail) -> Iterator[Json]:
    """The turns of a conversation's JSON record, each a section of its track `audio`."""
    for number, turn in enumerate(result["turns"], 1):
        start, end = turn["start_s"], turn["end_s"]
        section = Audio(audio.samples[round(start * audio.rate) : round(end * audio.rate)], audio.rate)
        warnings = [each for each in result["warnings"] if each.startswith(f"turn {number} ")]
        facts = {"id": turn["id"] or number, "duration_s": round(end - start, 3), "warnings": warnings}
        row = report_row({**turn, **facts}, **{"from": start, "to": end, "picture": spectrogram(section, detail)})
        yield row | ({"stop": "reused"} if turn.get("reused") else {})


def write_report(path: Path, page: ReportPage, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the page, whole or not at all; rows are consumed one at a time.

    Raises:
        OutputRefused, OutputFailed: as `atomic_file`.
    """
    template = (files("csm_cli") / "assets" / "report.html").read_text(encoding="utf-8")
    head, rest = template.split("/*PAGE*/")
    middle, tail = rest.split("/*ROWS*/")
    with atomic_file(path, flush=False) as file:
        file.write(f"{head}{_json(vars(page))}{middle}[".encode("utf-8", "replace"))
        for index, each in enumerate(rows):
            file.write(((",\n" if index else "\n") + _json(each)).encode("utf-8", "replace"))
        file.write(f"]{tail}".encode())


def embed_audio(audio: Audio) -> str:
    """FLAC in a data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio.samples, -1, 1), audio.rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def link_audio(file: str) -> str:
    """The URL of a file; `file` is its path relative to the page's folder."""
    return quote(file.encode("utf-8", "surrogateescape"))


def spectrogram(audio: Audio, detail: ReportDetail) -> Json | None:
    """Peaks [W] and a mel spectrogram [W, B], as base64 bytes; None without samples."""
    samples = audio.samples
    if not len(samples):
        return None
    columns = min(detail.columns, max(60, math.ceil(audio.duration * 100)))
    edges = np.linspace(0, len(samples), columns + 1).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), np.minimum(edges[:-1], len(samples) - 1))
    loudest = max(float(peaks.max()), 1e-3)
    spectrum = _mel_spectrogram(samples, edges, audio.rate, detail.bands)
    return {"wave": _base64(peaks / loudest), "spectrum": _base64(spectrum)}


def _mel_spectrogram(samples: NDArray[np.float32], edges: NDArray[Any], rate: int, bands: int) -> NDArray[np.float32]:
    """[W, B] from 0 (below the dynamic range) to 1 (the loudest)."""
    from transformers.audio_utils import mel_filter_bank  # librosa's, without the cache that numba needs

    padded = np.pad(samples, _FFT_SAMPLES // 2)
    centres = (edges[:-1] + edges[1:]) // 2
    windows = np.lib.stride_tricks.sliding_window_view(padded, _FFT_SAMPLES)[np.minimum(centres, len(samples))]
    power = np.abs(np.fft.rfft(windows * np.hanning(_FFT_SAMPLES))) ** 2
    bank = mel_filter_bank(
        num_frequency_bins=_FFT_SAMPLES // 2 + 1,
        num_mel_filters=bands,
        min_frequency=0.0,
        max_frequency=min(_MAX_HZ, rate / 2),
        sampling_rate=rate,
        norm="slaney",
        mel_scale="slaney",
    )
    level = 10 * np.log10(np.maximum(power @ bank, 1e-10))
    shown: NDArray[np.float32] = np.clip(1 + (level - max(level.max(), -40.0)) / _DYNAMIC_RANGE, 0, 1).astype(
        np.float32
    )
    return shown


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).tobytes()).decode()


def _json(value: Mapping[str, Any]) -> str:
    """JSON in which an HTML parser finds no end of a script element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _byline(result: Mapping[str, Any]) -> str:
    device = f" on {result['device']}" if result.get("device") else ""
    return f"{result['model']}{device}, csm {__version__}. The speech is synthetic." if result else f"csm {__version__}"
