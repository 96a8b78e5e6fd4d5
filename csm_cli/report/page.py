"""The HTML report: players, waveforms, takes and stop reasons on one page that needs no network.

Audio stays beside the page, which links to it by relative paths, unless it is to be embedded.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli import __version__
from csm_cli.audio.io import Audio, read_audio
from csm_cli.errors import AudioUnreadable, InputError
from csm_cli.report import format_duration
from csm_cli.storage.files import atomic_file
from csm_cli.storage.paths import contained_path

MAX_ROWS = 10_000
_RATE = 24000  # Hz, of batch audio in pictures and inside a page
_FFT_SAMPLES = 1024
_MAX_HZ = 8000.0
_DYNAMIC_RANGE = 70.0  # dB below the loudest that a spectrogram shows
_PLAYED_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")  # by browsers, from a file
# Stop reasons as the page shows them; others are shown as they are.
_STOP_TEXTS = {"eos": "complete", "cap": "max duration", "silence": "fell silent", "repeat": "repeated sound"}

Json = dict[str, Any]


@dataclass(frozen=True)
class ReportDetail:
    """Resolution of a picture: columns of the waveform, and bands of the spectrogram, 0 for none."""

    columns: int
    bands: int

    @classmethod
    def for_rows(cls, rows: int) -> ReportDetail:
        """Keeps all pictures of a page within about two megabytes."""
        return cls(320, 40) if rows <= 100 else cls(320, 0) if rows <= 2000 else cls(120, 0)


@dataclass(frozen=True)
class ReportRequest:
    """Which page to write. command: the run's own, as typed, without --redo; embed: put the audio into the page."""

    path: Path
    command: str = ""
    embed: bool = False


@dataclass(frozen=True)
class BatchOrder:
    """ids: of a manifest's items, in its order; new: those that this run recorded."""

    ids: Iterable[str] = ()
    new: Set[str] = frozenset()


@dataclass(frozen=True)
class ReportPage:
    """byline: model and version. numbers, about: name and value pairs, shown and folded away.

    footnote: what was left out. track: of all turns. redo, pick, retry: commands to which the page adds what is ticked.
    """

    title: str
    byline: str
    numbers: tuple[tuple[str, str], ...] = ()
    footnote: str = ""
    track: Mapping[str, Any] | None = None
    about: tuple[tuple[str, str], ...] = ()
    redo: str = ""
    pick: str = ""
    retry: str = ""


@dataclass(frozen=True)
class _AudioSource:
    """Makes URLs of audio files for a page, relative to its folder, or with their content."""

    page: Path
    embed: bool

    def url(self, file: Path) -> str | None:
        """None where an embedded file cannot be read."""
        if not self.embed and file.suffix.lower() in _PLAYED_SUFFIXES:
            return link_audio(os.path.relpath(file, self.page.parent))
        try:
            return embed_audio(read_audio(file, _RATE))
        except AudioUnreadable:
            return None


def write_conversation_report(request: ReportRequest, result: Mapping[str, Any], audio: Audio, title: str) -> None:
    """The report of one conversation. result: its JSON record; a track that is not in a file is embedded.

    Raises:
        OutputRefused, OutputFailed: as `atomic_file`.
    """
    path, output, turns = request.path, result["output"], result["turns"]
    source = _AudioSource(path, request.embed)
    linked = output is not None and not request.embed and Path(output).suffix.lower() in _PLAYED_SUFFIXES
    track = {
        "audio": source.url(Path(output)) if linked else embed_audio(audio),
        "duration": audio.duration,
        **(picture(audio, ReportDetail(1200, 40)) or {}),
    }
    loudness = result.get("loudness") or {}
    reused = sum(bool(turn.get("reused")) for turn in turns)
    numbers = [("turns", str(len(turns))), ("audio", format_duration(audio.duration))]
    numbers += [("new", str(sum(_badge(turn) == "new" for turn in turns))), ("kept", str(reused))] if reused else []
    numbers += [("loudness", f"{loudness['lufs']:.1f} LUFS")] if loudness.get("lufs") is not None else []
    numbers += [("warnings", str(len(result["warnings"])))]
    page = ReportPage(
        title,
        _byline(result),
        tuple(numbers),
        track=track,
        about=_about(result),
        redo=request.command,
        pick=f"csm takes {shlex.quote(output)}" if output else "",
    )
    write_report(path, page, report_turn_rows(result, audio, ReportDetail.for_rows(len(turns)), source.url))


def write_batch_report(
    request: ReportRequest,
    latest: Callable[[], Iterable[Mapping[str, Any]]],
    ledger: Path,
    order: BatchOrder = BatchOrder(),
) -> None:
    """The report of a batch. latest: yields the newest result of each item; ledger: the results file beside the audio.

    Rows have the order of the manifest, items that it has no more come last. Of too many, all failures are shown.

    Raises:
        OutputRefused, OutputFailed: as `atomic_file`.
    """
    place = {name: number for number, name in enumerate(order.ids)}
    count, failed, warned, new, seconds = 0, 0, 0, 0, 0.0
    last: Mapping[str, Any] = {}
    keys: list[tuple[bool, int, int]] = []  # failures first, then the manifest's order
    for number, result in enumerate(latest()):
        good, name = result["status"] == "ok", str(result["id"])
        count, failed, warned = count + 1, failed + (not good), warned + bool(good and result.get("warnings"))
        new, seconds = new + (good and name in order.new), seconds + (result.get("duration_s") or 0.0)
        last = result if good else last
        keys.append((good, place.get(name, len(place)), number))
    shown = {number for _, _, number in sorted(keys)[:MAX_ROWS]}
    results = [
        (place.get(str(result["id"]), len(place)), number, result)
        for number, result in enumerate(latest())
        if number in shown
    ]
    results.sort(key=lambda each: each[:2])
    footnote = f"{count - MAX_ROWS} more are in {ledger.name}." if count > MAX_ROWS else ""
    numbers = [("items", str(count)), ("audio", format_duration(seconds)), ("failed", str(failed))]
    numbers += [("with warnings", str(warned))] + ([("new", str(new))] if order.new else [])
    page = ReportPage(
        ledger.parent.resolve().name or "batch",
        _byline(last),
        tuple(numbers),
        footnote,
        retry=f"{request.command} --retry-failed" if request.command and failed else "",
    )
    detail, source = ReportDetail.for_rows(len(results)), _AudioSource(request.path, request.embed)
    rows = (_item_row(result, ledger.parent, detail, source, order.new) for _, _, result in results)
    write_report(request.path, page, rows)


def _item_row(
    result: Mapping[str, Any], folder: Path, detail: ReportDetail, source: _AudioSource, new: Set[str]
) -> Json:
    """The row of a batch item; without audio if it failed or its file is missing."""
    if result["status"] != "ok":
        return report_row(result)
    facts: Json = {"badge": "new" if str(result["id"]) in new else "kept"}
    try:
        file = contained_path(folder, result.get("file"))
        audio = read_audio(file, _RATE)
    except InputError as error:  # also where the file is missing or unreadable
        return report_row(result, **facts, warnings=[*(result.get("warnings") or ()), str(error)])
    url = embed_audio(audio) if source.embed else source.url(file)
    return report_row(result, **facts, audio=url, picture=picture(audio, detail))


def report_row(record: Mapping[str, Any], **audio: Any) -> Json:
    """A row of the page: a turn of a result, or a batch item.

    audio: `audio`, its URL; `picture`, from `picture`; `from` and `to`, seconds in the track; they replace fields of
    the row.
    """
    turns = record.get("turns") or [record]
    failed = record.get("status") == "failed"
    stop = str(record.get("stop") or "")
    loudness = record.get("loudness")
    voices = dict.fromkeys(str(turn["voice"]) for turn in turns if turn.get("voice"))
    spelled = [str(turn["spelled"]) for turn in turns if turn.get("spelled")]
    return {
        "id": str(record.get("id") or ""),
        "number": record.get("number"),
        "speaker": ", ".join(dict.fromkeys(str(turn.get("speaker") or "") for turn in turns)),
        "voice": ", ".join(voices),
        "text": "\n".join(str(turn.get("text") or "") for turn in turns),
        "spelled": "\n".join(spelled),
        "status": "failed" if failed else "ok",
        "badge": "failed" if failed else _badge(record),
        "stop": "" if failed or stop == "recorded" else _STOP_TEXTS.get(stop, stop),
        "duration": record.get("duration_s"),
        "lufs": loudness.get("lufs") if isinstance(loudness, Mapping) else record.get("lufs"),
        "takes": [] if record.get("turns") else [_take(take) for take in record.get("takes") or ()],
        "more": _details(record),
        "warnings": [str(record["error"])] if failed else list(record.get("warnings") or ()),
        **audio,
    }


def _badge(record: Mapping[str, Any]) -> str:
    return "recorded" if record.get("stop") == "recorded" else "kept" if record.get("reused") else "new"


def _take(take: Mapping[str, Any]) -> Json:
    stop = str(take.get("stop") or "")
    facts = {"number": take.get("number"), "seed": take.get("seed"), "duration": take.get("duration_s")}
    facts |= {"stop": _STOP_TEXTS.get(stop, stop), "fault": take.get("fault"), "picked": bool(take.get("picked"))}
    return facts | {"chunk": take.get("chunk"), "audio": None}


def _details(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the page folds away."""
    tried = record.get("seeds_tried") or ()
    found = (
        ("seed", record.get("seed")),
        ("RTF", record.get("rtf")),
        ("seeds tried", ", ".join(map(str, tried)) if tried else None),
        ("error class", record.get("error_class")),
        ("takes", max((len(turn.get("takes") or ()) for turn in record.get("turns") or ()), default=None)),
        ("dropped from its context", ", ".join(map(str, record.get("dropped_turns") or ())) or None),
        *((str(name), value) for name, value in (record.get("extra") or {}).items()),
    )
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _about(result: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    window = result.get("context_window") or {}
    peak = (result.get("loudness") or {}).get("true_peak_dbtp")
    found = (
        ("RTF", f"{result['rtf']:.2f}" if result.get("rtf") else None),
        ("first seed", result.get("seed")),
        ("context", f"{window.get('peak')} of {window.get('soft_limit')} positions" if window else None),
        (
            "true peak",
            f"{peak} dBTP" if peak is not None else None,
        ),
        ("revision", result.get("revision")),
        ("device", result.get("device")),
    )
    return tuple((name, str(value)) for name, value in found if value is not None)


def report_turn_rows(
    result: Mapping[str, Any], audio: Audio, detail: ReportDetail, url: Callable[[Path], str | None]
) -> Iterator[Json]:
    """The turns of a conversation's JSON record, each a section of its track `audio`. url: of the file of a take."""
    for number, turn in enumerate(result["turns"], 1):
        start, end = turn["start_s"], turn["end_s"]
        section = Audio(audio.samples[round(start * audio.rate) : round(end * audio.rate)], audio.rate)
        warnings = [each for each in result["warnings"] if each.startswith(f"turn {number} ")]
        facts = {"id": turn["id"] or number, "duration_s": round(end - start, 3), "warnings": warnings}
        row = report_row({**turn, **facts, "number": number}, **{"from": start, "to": end})
        for take, record in zip(row["takes"], turn.get("takes") or (), strict=True):
            take["audio"] = url(Path(record["audio"])) if record.get("audio") else None
            take["chunk"] = take["chunk"] if len(turn.get("segments") or ()) > 1 else 0
        yield row | {"picture": picture(section, detail)}


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


def picture(audio: Audio, detail: ReportDetail) -> Json | None:
    """`wave`: peaks [W]; `spectrum`: a mel spectrogram [W, bands], if there is to be one; both as base64 bytes.

    None without samples.
    """
    samples = audio.samples
    if not len(samples):
        return None
    columns = min(detail.columns, max(60, math.ceil(audio.duration * 100)))
    edges = np.linspace(0, len(samples), columns + 1).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), np.minimum(edges[:-1], len(samples) - 1))
    found: Json = {"wave": _base64(peaks / max(float(peaks.max()), 1e-3))}
    if detail.bands:
        edges = np.linspace(0, len(samples), min(columns, 320) + 1).astype(int)
        found |= {
            "bands": detail.bands,
            "spectrum": _base64(_mel_spectrogram(samples, edges, audio.rate, detail.bands)),
        }
    return found


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
    model = f"{result['model']}{device}, " if result.get("model") else ""
    return f"{model}csm {__version__}. The speech is synthetic." if result else f"csm {__version__}"
