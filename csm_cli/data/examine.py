"""Whether recorded speech is fit to learn from. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.io import Audio, AudioBytes, AudioInfo, probe, range_problem, read_audio
from csm_cli.data.clips import ClipFindings, DatasetEntry, DroppedClip, TrainingClip, TrainingConversation
from csm_cli.errors import AudioUnreadable

_FRAME_SECONDS = 0.02
# A frame is silent below either level: of full scale, or of the loudest frame (-54 dBFS, -40 dB).
SILENT, SILENT_BESIDE_LOUDEST = 2e-3, 1e-2
# Sound is cut off where so many samples on end stand at full scale.
FULL_SCALE, FLAT_SAMPLES = 0.995, 4
# Letters and digits per second of speech; beyond, text and sound do not belong together.
FASTEST, SLOWEST = 30.0, 1.0
_GRACE_SECONDS = 3.0  # a short word may be drawn out
_SLACK_SECONDS, _SLACK = 0.2, 0.02  # how far a dataset may be mistaken about a length


@dataclass(frozen=True)
class ClipLimits:
    """What is learned from. Seconds; `pause`: the longest silence within; `clipped`: the share of samples cut off."""

    shortest: float = 0.2
    longest: float = 30.0
    pause: float = 2.0
    clipped: float = 0.001
    lowest_rate: int = 8000


class UnsuitableClip(Exception):
    """Why a clip is left out: one of `REASONS`, and in so many words. seconds: its length, where that is known."""

    def __init__(self, reason: str, detail: str, seconds: float = 0.0) -> None:
        super().__init__(reason, detail, seconds)
        self.reason, self.detail, self.seconds = reason, detail, seconds


def read_clip(talk: TrainingConversation, limits: ClipLimits) -> Iterator[Audio | DroppedClip]:
    """The sound of each clip of a conversation, or why it is left out."""
    for clip in talk.clips:
        try:
            yield check_clip(clip, limits)
        except UnsuitableClip as unfit:
            yield DroppedClip(talk.id, clip.place, unfit.reason, unfit.detail, round(unfit.seconds, 2))


def examine(piece: DatasetEntry, limits: ClipLimits) -> ClipFindings:
    """What of a piece could be learned from."""
    found = ClipFindings()
    for item in piece:
        if isinstance(item, DroppedClip):
            found.drops.append(item)
            continue
        for clip, sound in zip(item.clips, read_clip(item, limits), strict=True):
            found.note(clip, sound if isinstance(sound, DroppedClip) else sound.duration)
    return found


def check_clip(clip: TrainingClip, limits: ClipLimits) -> Audio:
    """The sound of a clip at its own rate.

    Raises:
        Unfit: it should not be learned from.
    """
    if not any(char.isalnum() for char in clip.text):
        raise UnsuitableClip("no text", f"its text is {clip.text!r}" if clip.text else "it has no text")
    if clip.recording is None:
        raise UnsuitableClip("no audio", "it names no sound file")
    try:
        file = _file(clip)
        info = probe(file)
        seconds = _check_header(clip, info, limits)
        part = (clip.recording.start, clip.recording.end)
        audio = read_audio(file, info.rate, *part, max_seconds=seconds + 1)
    except AudioUnreadable as problem:
        raise UnsuitableClip("unreadable", str(problem)) from problem
    _check_sound(audio, clip.text, limits, seconds)
    return audio


def _file(clip: TrainingClip) -> AudioBytes | Path:
    """Raises AudioUnreadable; Unfit where a row has no sound."""
    assert clip.recording is not None
    if clip.row is None:
        return clip.recording.path
    from csm_cli.data.parquet import cell_audio

    found = cell_audio(clip.recording.path, clip.row)
    if found is None:
        raise UnsuitableClip("no audio", "its row holds no sound")
    return found


def _check_header(clip: TrainingClip, info: AudioInfo, limits: ClipLimits) -> float:
    """What can be known without reading the samples; returns the clip's seconds."""
    heard = clip.recording
    assert heard is not None
    if trouble := range_problem(info.duration, heard.start, heard.end, max_seconds=float("inf")):
        raise UnsuitableClip("unreadable", f"{heard.path}: {trouble}")
    seconds = min(info.duration if heard.end is None else heard.end, info.duration) - (heard.start or 0.0)
    if info.rate < limits.lowest_rate:
        raise UnsuitableClip("wrong rate", f"{info.rate} samples per second, at least {limits.lowest_rate}", seconds)
    if clip.rate is not None and clip.rate != info.rate:
        raise UnsuitableClip(
            "wrong rate", f"the dataset says {clip.rate}, the file {info.rate} samples per second", seconds
        )
    if clip.duration is not None and abs(clip.duration - seconds) > _SLACK_SECONDS + _SLACK * seconds:
        raise UnsuitableClip(
            "wrong duration", f"the dataset says {clip.duration:.2f} s, the file {seconds:.2f} s", seconds
        )
    if seconds < limits.shortest:
        raise UnsuitableClip("too short", f"{seconds:.2f} s, at least {limits.shortest:g} s", seconds)
    if seconds > limits.longest:
        raise UnsuitableClip("too long", f"{seconds:.2f} s, at most {limits.longest:g} s", seconds)
    return seconds


def _check_sound(audio: Audio, text: str, limits: ClipLimits, seconds: float) -> None:
    cut = clipped_share(audio.samples)
    if cut > limits.clipped:
        raise UnsuitableClip("clipping", f"{cut:.1%} of the samples are cut off, at most {limits.clipped:.1%}", seconds)
    silent = _silent(audio)
    if silent.all():
        raise UnsuitableClip("silence", "nothing is to be heard", seconds)
    start, frames = _longest_run(silent)
    if frames * _FRAME_SECONDS > limits.pause:
        where = f"{frames * _FRAME_SECONDS:.1f} s of silence after {start * _FRAME_SECONDS:.1f} s"
        raise UnsuitableClip("silence", f"{where}, at most {limits.pause:g} s", seconds)
    letters = sum(char.isalnum() for char in text)
    spoken = float((~silent).sum()) * _FRAME_SECONDS
    if letters > FASTEST * (spoken + _FRAME_SECONDS):
        raise UnsuitableClip("too much text", f"{letters} letters for {spoken:.2f} s of speech", seconds)
    if letters < SLOWEST * (spoken - _GRACE_SECONDS):
        raise UnsuitableClip("too little text", f"{letters} letters for {spoken:.2f} s of speech", seconds)


def clipped_share(samples: NDArray[np.float32]) -> float:
    """The share of samples [N] that stand at full scale beside others that do."""
    starts, ends = _runs(np.abs(samples) >= FULL_SCALE)
    lengths = ends - starts
    return float(lengths[lengths >= FLAT_SAMPLES].sum()) / len(samples)


def _silent(audio: Audio) -> NDArray[np.bool_]:
    """Which frames of 20 ms are silent, a part frame at the end included."""
    size = max(1, round(_FRAME_SECONDS * audio.rate))
    firsts = np.arange(0, len(audio.samples), size)
    counts = np.minimum(size, len(audio.samples) - firsts)
    levels = np.sqrt(np.add.reduceat(np.square(audio.samples, dtype=np.float64), firsts) / counts)
    silent: NDArray[np.bool_] = levels <= max(SILENT, SILENT_BESIDE_LOUDEST * float(levels.max()))
    return silent


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the longest run of true begins, and how long it is."""
    starts, ends = _runs(flags)
    if not len(starts):
        return 0, 0
    longest = int((ends - starts).argmax())
    return int(starts[longest]), int(ends[longest] - starts[longest])


def _runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of true begin, and where they have ended."""
    edges = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
