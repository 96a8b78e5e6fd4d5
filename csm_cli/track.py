"""Utterances laid out on one timeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio import Audio

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """One utterance: samples float32 [N], `gap` seconds after the end of the part before, `gain` in decibels.

    A negative gap begins before the part before has ended, though never before the track.
    """

    samples: NDArray[np.float32]
    gap: float = 0.0
    gain: float = 0.0


@dataclass(frozen=True)
class Span:
    """Where a part lies on the track, in seconds."""

    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Track:
    audio: Audio
    spans: tuple[Span, ...]


def place(parts: Sequence[Part], rate: int, tail: float = 0.0) -> Track:
    """One track of all parts; where they overlap they are summed. `tail`: seconds of silence after the last end.

    A track louder than full scale is turned down as a whole, so that nothing clips and the balance stays.
    """
    starts = _starts(parts, rate)
    ends = [start + len(part.samples) for start, part in zip(starts, parts, strict=True)]
    samples = np.zeros(max(ends, default=0) + round(tail * rate), dtype=np.float32)
    for start, end, part in zip(starts, ends, parts, strict=True):
        samples[start:end] += part.samples * np.float32(10 ** (part.gain / 20))
    spans = tuple(Span(start / rate, end / rate) for start, end in zip(starts, ends, strict=True))
    return Track(Audio(_within_full_scale(samples), rate), spans)


def _starts(parts: Sequence[Part], rate: int) -> list[int]:
    starts: list[int] = []
    end = 0
    for part in parts:
        starts.append(max(0, end + round(part.gap * rate)))
        end = starts[-1] + len(part.samples)
    return starts


def _within_full_scale(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    peak = float(np.abs(samples).max(initial=0.0))
    if peak <= 1.0:
        return samples
    _LOG.info("the track peaks %.1f dB over full scale and is turned down by as much", 20 * np.log10(peak))
    return samples / np.float32(peak)
