"""Mixes clips into one track, with gaps, overlaps, gains and loudness."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.io import Audio
from csm_cli.audio.loudness import loudness, master

_LOG = logging.getLogger(__name__)
_MAX_TURN_DIFFERENCE = 3.0  # LU between a turn and its speaker's average; more is the fault of a take

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrackClip:
    """A clip of a track: samples float32 [N]; gap: seconds after the end of the clip before; gain in dB.

    A negative gap starts it before the end of the clip before, but never before the track. speaker: names its stem.
    """

    samples: Samples
    gap: float = 0.0
    gain: float = 0.0
    speaker: str = ""

    @property
    def amplified(self) -> Samples:
        return apply_gain(self.samples, self.gain)


@dataclass(frozen=True)
class TrackSpan:
    """Start and end of a clip on its track, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Track:
    """audio: the sum of all clips with their gains, times the track's own gain [N] or [1]. spans: of the clips."""

    audio: Audio
    spans: tuple[TrackSpan, ...]
    clips: tuple[TrackClip, ...] = ()
    gain: Samples | None = None

    def turn(self, index: int) -> Audio:
        """One clip as it sounds in the track."""
        clip, first = self.clips[index], round(self.spans[index].start * self.audio.rate)
        return Audio(clip.amplified * self._gains(first, first + len(clip.samples)), self.audio.rate)

    def stems(self) -> dict[str, Audio]:
        """The track of each speaker, as long as the whole; as 16-bit samples they add up to the track's exactly.

        Where speakers overlap, a stem takes the rounding error of those before it: at most one 16-bit step.
        """
        speakers = list(dict.fromkeys(clip.speaker for clip in self.clips))
        whole = np.clip(np.rint(self.audio.samples * 32768), -32768, 32767)
        stems: dict[str, Audio] = {}
        total, rounded = np.zeros_like(whole), np.zeros_like(whole)  # of the stems so far
        for speaker in speakers:
            samples = np.zeros_like(self.audio.samples)
            for clip, span in zip(self.clips, self.spans, strict=True):
                if clip.speaker == speaker:
                    first = round(span.start * self.audio.rate)
                    samples[first : first + len(clip.samples)] += clip.amplified
            total += samples * self._gains(0, len(samples))
            new_rounded = np.rint(total * 32768) if speaker != speakers[-1] else whole
            stems[speaker] = Audio(((new_rounded - rounded) / 32768).astype(np.float32), self.audio.rate)
            rounded = new_rounded
        return stems

    def _gains(self, first: int, last: int) -> Samples:
        gain = np.ones(1, np.float32) if self.gain is None else self.gain
        return gain if len(gain) == 1 else gain[first:last]


def mix(clips: Sequence[TrackClip], rate: int, tail: float = 0.0, target: float | None = None) -> Track:
    """One track of all clips, overlaps summed. tail: seconds of silence after the last end.

    target: loudness of the track in LUFS (EBU R128), with speakers matched to each other. Without one, a track that
    exceeds full scale is attenuated as a whole, so that nothing clips and the balance stays.
    """
    if target is not None:
        clips = match_loudness(clips, rate)
    starts: list[int] = []
    end = 0
    for clip in clips:
        starts.append(max(0, end + round(clip.gap * rate)))
        end = starts[-1] + len(clip.samples)
    ends = [start + len(clip.samples) for start, clip in zip(starts, clips, strict=True)]
    samples = np.zeros(max(ends, default=0) + round(tail * rate), dtype=np.float32)
    for start, end, clip in zip(starts, ends, clips, strict=True):
        samples[start:end] += clip.amplified
    if target is None:
        peak = float(np.abs(samples).max(initial=0.0))
        if peak > 1.0:
            level = logging.WARNING if any(clip.gain > 0 for clip in clips) else logging.INFO  # somebody raised it
            _LOG.log(level, "the track exceeds full scale by %.1f dB and is attenuated", 20 * np.log10(peak))
        gain = np.array([1.0 / max(peak, 1.0)], np.float32)
    else:
        gain = master(samples, rate, target)
    spans = tuple(TrackSpan(start / rate, end / rate) for start, end in zip(starts, ends, strict=True))
    return Track(Audio(samples * gain, rate), spans, tuple(clips), gain)


def match_loudness(clips: Sequence[TrackClip], rate: int) -> list[TrackClip]:
    """The clips with gains, in addition to their own, that make all speakers equally loud.

    The turns of one speaker keep their differences up to 3 LU.
    """
    by_speaker: dict[str, list[Samples]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip.samples)
    averages = {speaker: loudness(np.concatenate(samples), rate) for speaker, samples in by_speaker.items()}
    matched = []
    for clip in clips:
        own, average = loudness(clip.samples, rate), averages[clip.speaker]
        gain = 0.0
        if np.isfinite((own, average)).all():
            gain = float(np.clip(own - average, -_MAX_TURN_DIFFERENCE, _MAX_TURN_DIFFERENCE) - own)
        matched.append(replace(clip, gain=clip.gain + gain))
    return matched


def apply_gain(samples: Samples, decibels: float) -> Samples:
    return samples * np.float32(10 ** (decibels / 20))
