"""Quality checks of recorded speech before training: duration, rate, clipping, silence, text that fits. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.clip_checks import (
    FRAME_SECONDS,
    MIN_CLIP_SECONDS,
    SILENT_LEVEL,
    clip_warnings,
    frame_levels,
    is_silent,
)
from csm_cli.audio.io import Audio, AudioInfo, probe, range_problem, read_audio
from csm_cli.data.dataset import ChunkResult, DatasetChunk, DroppedClip, TrainingClip, TrainingConversation
from csm_cli.data.packed import read_packed_audio
from csm_cli.errors import AudioUnreadable, failure_of

SILENT_BELOW_LOUDEST = 1e-2  # a frame is silent below SILENT_LEVEL, or 40 dB below the loudest frame
# Audio is clipped where so many consecutive samples are at full scale.
FULL_SCALE, CLIPPED_RUN = 0.995, 4
# Letters and digits per second of speech; beyond, transcript and audio do not match.
MAX_LETTERS_PER_SECOND, MIN_LETTERS_PER_SECOND = 30.0, 1.0
_SLOW_SPEECH_SECONDS = 3.0  # a short word may be drawn out
_DURATION_TOLERANCE, _RELATIVE_TOLERANCE = 0.2, 0.02  # of durations stated by the dataset: seconds, share


@dataclass(frozen=True)
class ClipLimits:
    """Durations and the longest inner silence in seconds; max_clipped: share of clipped samples; min_rate: in Hz."""

    min_duration: float = MIN_CLIP_SECONDS
    max_duration: float = 30.0
    max_silence: float = 2.0
    max_clipped: float = 0.001
    min_rate: int = 8000


class UnsuitableClip(Exception):
    """reason: one of `REASONS`; detail: for people; seconds: the clip's length where known."""

    def __init__(self, reason: str, detail: str, seconds: float = 0.0) -> None:
        super().__init__(reason, detail, seconds)
        self.reason, self.detail, self.seconds = reason, detail, seconds


def check_chunk(chunk: DatasetChunk, limits: ClipLimits) -> ChunkResult:
    """Reads and checks all clips of a chunk."""
    result = ChunkResult()
    for item in chunk:
        if isinstance(item, DroppedClip):
            result.dropped.append(item)
            continue
        for clip, audio in zip(item.clips, read_clips(item, limits), strict=True):
            result.add(clip, audio if isinstance(audio, DroppedClip) else audio.duration)
            if isinstance(audio, Audio):
                result.warn(clip, clip_warnings(audio))
    return result


def read_clips(conversation: TrainingConversation, limits: ClipLimits) -> Iterator[Audio | DroppedClip]:
    """The audio of each clip of a conversation, or why it is dropped."""
    for clip in conversation.clips:
        try:
            yield check_clip(clip, limits)
        except UnsuitableClip as problem:
            seconds = round(problem.seconds, 2)
            yield DroppedClip(conversation.id, clip.place, problem.reason, problem.detail, seconds)
        except BaseException as unexpected:  # one clip never stops a run over a million
            failure = failure_of(unexpected)
            yield DroppedClip(conversation.id, clip.place, "unreadable", f"{failure.kind}: {unexpected}")


def check_clip(clip: TrainingClip, limits: ClipLimits) -> Audio:
    """The audio of a clip at its own rate.

    Raises:
        UnsuitableClip: it does not meet the limits.
    """
    if not any(char.isalnum() for char in clip.text):
        raise UnsuitableClip("no text", f"its text is {clip.text!r}" if clip.text else "it has no text")
    recording = clip.recording
    if recording is None:
        raise UnsuitableClip("no audio", "it names no audio file")
    try:
        file = recording.path if clip.row is None else read_packed_audio(recording.path, clip.row)
        if file is None:
            raise UnsuitableClip("no audio", "its row has no audio")
        info = probe(file)
        seconds = _check_header(clip, info, limits)
        audio = read_audio(file, info.rate, recording.start, recording.end, max_seconds=seconds + 1)
    except AudioUnreadable as problem:
        raise UnsuitableClip("unreadable", str(problem)) from problem
    _check_samples(audio, clip.text, limits, seconds)
    return audio


def _check_header(clip: TrainingClip, info: AudioInfo, limits: ClipLimits) -> float:
    """Checks that need no samples; returns the clip's seconds."""
    recording = clip.recording
    assert recording is not None
    if invalid := range_problem(info.duration, recording.start, recording.end, max_seconds=float("inf")):
        raise UnsuitableClip("unreadable", f"{recording.path}: {invalid}")
    end = info.duration if recording.end is None else min(recording.end, info.duration)
    seconds = end - (recording.start or 0.0)
    tolerance = _DURATION_TOLERANCE + _RELATIVE_TOLERANCE * seconds
    if info.rate < limits.min_rate:
        problem = ("wrong rate", f"{info.rate} samples per second, minimum {limits.min_rate}")
    elif clip.rate is not None and clip.rate != info.rate:
        problem = ("wrong rate", f"the dataset states {clip.rate}, the file has {info.rate} samples per second")
    elif clip.duration is not None and abs(clip.duration - seconds) > tolerance:
        problem = ("wrong duration", f"the dataset states {clip.duration:.2f} s, the file has {seconds:.2f} s")
    elif seconds < limits.min_duration:
        problem = ("too short", f"{seconds:.2f} s, minimum {limits.min_duration:g} s")
    elif seconds > limits.max_duration:
        problem = ("too long", f"{seconds:.2f} s, maximum {limits.max_duration:g} s")
    else:
        return seconds
    raise UnsuitableClip(*problem, seconds)


def _check_samples(audio: Audio, text: str, limits: ClipLimits, seconds: float) -> None:
    clipped = clipped_share(audio.samples)
    if clipped > limits.max_clipped:
        raise UnsuitableClip("clipping", f"{clipped:.1%} of the samples, maximum {limits.max_clipped:.1%}", seconds)
    silent = _silent_frames(audio)
    if silent.all() or is_silent(audio):
        raise UnsuitableClip("silence", "it is silent throughout", seconds)
    starts, ends = _runs(silent)
    if len(starts):
        longest = int((ends - starts).argmax())
        start, duration = starts[longest] * FRAME_SECONDS, (ends - starts)[longest] * FRAME_SECONDS
        if duration > limits.max_silence:
            detail = f"{duration:.1f} s of silence after {start:.1f} s, maximum {limits.max_silence:g} s"
            raise UnsuitableClip("silence", detail, seconds)
    letters = sum(char.isalnum() for char in text)
    speech = float((~silent).sum()) * FRAME_SECONDS
    if letters > MAX_LETTERS_PER_SECOND * (speech + FRAME_SECONDS):
        raise UnsuitableClip("too much text", f"{letters} letters for {speech:.2f} s of speech", seconds)
    if letters < MIN_LETTERS_PER_SECOND * (speech - _SLOW_SPEECH_SECONDS):
        raise UnsuitableClip("too little text", f"{letters} letters for {speech:.2f} s of speech", seconds)


def clipped_share(samples: NDArray[np.float32]) -> float:
    """The share of samples [N] that are at full scale next to others that are."""
    starts, ends = _runs(np.abs(samples) >= FULL_SCALE)
    lengths = ends - starts
    return float(lengths[lengths >= CLIPPED_RUN].sum()) / len(samples)


def _silent_frames(audio: Audio) -> NDArray[np.bool_]:
    """Which frames of 20 ms are silent, including a partial frame at the end."""
    levels = frame_levels(audio)
    silent: NDArray[np.bool_] = levels <= max(SILENT_LEVEL, SILENT_BELOW_LOUDEST * float(levels.max()))
    return silent


def _runs(flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and end indices of the runs of true."""
    edges = np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
