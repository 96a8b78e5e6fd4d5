"""Utterances laid out on one timeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.io import Audio
from csm_cli.audio.loudness import loudness, master

_LOG = logging.getLogger(__name__)
_LIVELY = 3.0  # LU a turn may be louder or softer than its speaker usually is


@dataclass(frozen=True, eq=False)
class TrackClip:
    """One utterance: samples float32 [N], `gap` seconds after the end of the part before, `gain` in decibels.

    A negative gap begins before the part before has ended, though never before the track. voice: whose stem it is in.
    """

    samples: NDArray[np.float32]
    gap: float = 0.0
    gain: float = 0.0
    voice: str = ""


@dataclass(frozen=True)
class TrackSpan:
    """Where a part lies on the track, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Track:
    """audio: the sum of all parts, each times its gain and the track's own [N] or [1]."""

    audio: Audio
    spans: tuple[TrackSpan, ...]
    parts: tuple[TrackClip, ...] = ()
    gain: NDArray[np.float32] | None = None

    def turn(self, index: int) -> Audio:
        """One part as it sounds in the track."""
        part, first = self.parts[index], self._sample(self.spans[index].start)
        return Audio(_loud(part) * self._gains(first, first + len(part.samples)), self.audio.rate)

    def stems(self) -> dict[str, Audio]:
        """Each voice by itself, as long as the track; as 16-bit samples they add up to the track's, to the last bit.

        Where voices overlap, a stem takes the rounding of those before it: at most one step of 16 bits.
        """
        voices = list(dict.fromkeys(part.voice for part in self.parts))
        whole = np.clip(np.rint(self.audio.samples * 32768), -32768, 32767)
        stems: dict[str, Audio] = {}
        so_far, rounded = np.zeros_like(whole), np.zeros_like(whole)
        for voice in voices:
            so_far += self._alone(voice)
            until = np.rint(so_far * 32768) if voice != voices[-1] else whole
            stems[voice] = Audio(((until - rounded) / 32768).astype(np.float32), self.audio.rate)
            rounded = until
        return stems

    def _alone(self, voice: str) -> NDArray[np.float32]:
        samples = np.zeros_like(self.audio.samples)
        for part, span in zip(self.parts, self.spans, strict=True):
            if part.voice == voice:
                first = self._sample(span.start)
                samples[first : first + len(part.samples)] += _loud(part)
        return samples * self._gains(0, len(samples))

    def _gains(self, first: int, last: int) -> NDArray[np.float32]:
        gain = np.ones(1, np.float32) if self.gain is None else self.gain
        return gain if len(gain) == 1 else gain[first:last]

    def _sample(self, seconds: float) -> int:
        return round(seconds * self.audio.rate)


def mix(parts: Sequence[TrackClip], rate: int, tail: float = 0.0, target: float | None = None) -> Track:
    """One track of all parts; where they overlap they are summed. `tail`: seconds of silence after the last end.

    target: how loud it is made, in LUFS (EBU R128), its speakers first matched to each other; without one, a track
    louder than full scale is turned down as a whole, so that nothing clips and the balance stays.
    """
    if target is not None:
        parts = match_loudness(parts, rate)
    starts = _starts(parts, rate)
    ends = [start + len(part.samples) for start, part in zip(starts, parts, strict=True)]
    samples = np.zeros(max(ends, default=0) + round(tail * rate), dtype=np.float32)
    for start, end, part in zip(starts, ends, parts, strict=True):
        samples[start:end] += _loud(part)
    gain = _within_full_scale(samples) if target is None else master(samples, rate, target)
    spans = tuple(TrackSpan(start / rate, end / rate) for start, end in zip(starts, ends, strict=True))
    return Track(Audio(samples * gain, rate), spans, tuple(parts), gain)


def match_loudness(parts: Sequence[TrackClip], rate: int) -> list[TrackClip]:
    """The parts with gains that make all voices equally loud, before the gains they have.

    A voice's own turns keep what they differ by, up to 3 LU; what differs more is a take that came out wrong.
    """
    voices: dict[str, list[NDArray[np.float32]]] = {}
    for part in parts:
        voices.setdefault(part.voice, []).append(part.samples)
    usual = {voice: loudness(np.concatenate(samples), rate) for voice, samples in voices.items()}
    return [replace(part, gain=part.gain + _correction(part, usual[part.voice], rate)) for part in parts]


def _correction(part: TrackClip, usual: float, rate: int) -> float:
    own = loudness(part.samples, rate)
    if not np.isfinite((own, usual)).all():
        return 0.0
    return float(np.clip(own - usual, -_LIVELY, _LIVELY) - own)


def apply_gain(samples: NDArray[np.float32], decibels: float) -> NDArray[np.float32]:
    return samples * np.float32(10 ** (decibels / 20))


def _loud(part: TrackClip) -> NDArray[np.float32]:
    return apply_gain(part.samples, part.gain)


def _starts(parts: Sequence[TrackClip], rate: int) -> list[int]:
    starts: list[int] = []
    end = 0
    for part in parts:
        starts.append(max(0, end + round(part.gap * rate)))
        end = starts[-1] + len(part.samples)
    return starts


def _within_full_scale(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The gain [1] that keeps a track within full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > 1.0:
        _LOG.info("the track peaks %.1f dB over full scale and is turned down by as much", 20 * np.log10(peak))
    return np.array([1.0 / max(peak, 1.0)], np.float32)
