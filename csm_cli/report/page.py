"""A run as one page of HTML: players, waveforms, spectrograms, and why every take stopped. It needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.io import Audio
from csm_cli.storage.files import atomic_file

EMBEDDED_SECONDS = 1800.0  # of sound that a page holds; with more it plays the files where they lie
MAX_ROWS = 10_000
_WINDOW = 1024  # samples
_HIGHEST = 8000.0  # Hz
_QUIETEST = 70.0  # dB below the loudest, and black

Json = dict[str, Any]


@dataclass(frozen=True)
class ReportDetail:
    """How fine pictures are: columns at most, and bands of frequency."""

    columns: int
    bands: int

    @classmethod
    def of(cls, rows: int) -> ReportDetail:
        """So that all pictures of a page stay within some ten megabytes."""
        return cls(320, 48) if rows <= 300 else cls(120, 32) if rows <= 2000 else cls(60, 16)


@dataclass(frozen=True)
class ReportPage:
    """by: one line on what made it. numbers: name and value pairs. more: what is not on the page. track: all in one."""

    title: str
    by: str
    numbers: tuple[tuple[str, str], ...] = ()
    more: str = ""
    track: Mapping[str, Any] | None = None


def report_row(facts: Mapping[str, Any], **sound: Any) -> Json:
    """A turn of a result, or a whole one of a batch, as the page lists it.

    sound: `audio`, where a browser finds it; `picture`, what `picture` gives; `from` and `to`, seconds in the track.
    """
    turns = facts.get("turns") or [facts]
    takes = max((len(turn.get("takes") or ()) for turn in turns), default=0)
    failed = facts.get("status") == "failed"
    return {
        "id": str(facts.get("id") or ""),
        "speaker": ", ".join(dict.fromkeys(str(turn.get("speaker") or "") for turn in turns)),
        "text": "\n".join(str(turn.get("text") or "") for turn in turns),
        "status": "failed" if failed else "ok",
        "stop": facts.get("stop") or "",
        "seed": facts.get("seed"),
        "duration": facts.get("duration_s"),
        "takes": takes,
        "warnings": [str(facts["error"])] if failed else list(facts.get("warnings") or ()),
        **sound,
    }


def report_turn_rows(result: Mapping[str, Any], audio: Audio, detail: ReportDetail) -> Iterator[Json]:
    """The turns of a dialogue's result, each a part of its track `audio`."""
    for number, turn in enumerate(result["turns"], 1):
        begin, end = turn["start_s"], turn["end_s"]
        part = Audio(audio.samples[round(begin * audio.rate) : round(end * audio.rate)], audio.rate)
        said = [each for each in result["warnings"] if each.startswith(f"turn {number} ")]
        facts = {"id": number, "status": "ok", "duration_s": round(end - begin, 3), "warnings": said}
        sound = {"from": begin, "to": end, "picture": spectrogram_png(part, detail)}
        yield report_row({**turn, **facts, "id": turn["id"] or number}, **sound)


def write_report(path: Path, page: ReportPage, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the page; it appears whole or not at all. Rows are asked for one at a time.

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
    """The sound itself, as FLAC in a data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio.samples, -1, 1), audio.rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def link_audio(file: str) -> str:
    """A file as the page refers to it; `file` is its path from the page's folder."""
    return quote(file.encode("utf-8", "surrogateescape"))


def spectrogram_png(audio: Audio, detail: ReportDetail) -> Json | None:
    """Peaks [W] and a mel spectrogram [W, B], as bytes in base64; None of no sound."""
    samples = audio.samples
    if not len(samples):
        return None
    columns = min(detail.columns, max(60, math.ceil(audio.duration * 100)))
    edges = np.linspace(0, len(samples), columns + 1).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), np.minimum(edges[:-1], len(samples) - 1))
    loudest = max(float(peaks.max()), 1e-3)
    spectrum = _spectrum(samples, edges, audio.rate, detail.bands)
    return {"wave": _bytes(peaks / loudest), "spectrum": _bytes(spectrum)}


def _spectrum(samples: NDArray[np.float32], edges: NDArray[Any], rate: int, bands: int) -> NDArray[np.float32]:
    """[W, B] from 0, the quietest that is shown, to 1, the loudest there is."""
    from librosa.filters import mel

    padded = np.pad(samples, _WINDOW // 2)
    centres = (edges[:-1] + edges[1:]) // 2
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[np.minimum(centres, len(samples))]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW))) ** 2
    bank = mel(sr=rate, n_fft=_WINDOW, n_mels=bands, fmax=min(_HIGHEST, rate / 2))
    level = 10 * np.log10(np.maximum(power @ bank.T, 1e-10))
    shown: NDArray[np.float32] = np.clip(1 + (level - max(level.max(), -40.0)) / _QUIETEST, 0, 1).astype(np.float32)
    return shown


def _bytes(values: NDArray[Any]) -> str:
    return base64.b64encode(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).tobytes()).decode()


def _json(value: Mapping[str, Any]) -> str:
    """JSON that no HTML parser can take for the end of a script."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
