"""How loud speech is, and how to make it as loud as asked: ITU-R BS.1770-4 loudness in the manner of EBU R128.

All levels are of mono samples, float32 [N]. Loudness in LUFS, gains and differences in dB.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyloudnorm

_LOG = logging.getLogger(__name__)

CEILING = -1.0  # dBTP
MIN_LUFS, MAX_LUFS = -70.0, -5.0  # LUFS that can be asked for: the meter's absolute gate, and where speech is a square
WITHIN = 0.5  # LU from the target
_MARGIN = 0.1  # dB below the ceiling, for meters that look between our 4 points a sample
_BLOCK_SECONDS = 0.4  # what the meter hears at once
_OVERSAMPLING = 4
_LOOK_SECONDS = 0.01  # the limiter begins so long before a peak, and lets go as long after
_ROUNDS = 8
_CHUNK = 1 << 18  # samples oversampled at a time
_EDGE = 64  # samples on either side of a chunk that the oversampling filter sees

Samples = NDArray[np.float32]


def loudness(samples: Samples, rate: int) -> float:
    """Integrated loudness: silence is gated out, so that it is that of the speech; -inf where there is none.

    What is shorter than the meter's block of 0.4 s is measured as if it went on.
    """
    shortest = int(_BLOCK_SECONDS * rate) + 1
    if not samples.any():
        return -np.inf
    if len(samples) < shortest:
        samples = np.tile(samples, -(-shortest // len(samples)))
    return float(_meter(rate).integrated_loudness(samples.astype(np.float64)))


def true_peak(samples: Samples) -> float:
    """The highest point of the wave that the samples stand for, in dBTP; -inf for silence."""
    with np.errstate(divide="ignore"):
        return float(20 * np.log10(_peaks(samples).max(initial=0.0)))


def master(samples: Samples, rate: int, target: float) -> Samples:
    """The gain of every sample [N] that brings the whole to `target` LUFS with its true peak under `CEILING`.

    One gain for all, lowered smoothly around peaks that would be too high. Where a target cannot be reached under the
    ceiling, the log says what was.
    """
    reached = loudness(samples, rate)
    if not np.isfinite(reached):
        return np.ones_like(samples)
    level = target - reached
    for _ in range(_ROUNDS):
        even = np.float32(10 ** (level / 20))
        gain = even * _limiter(samples * even, rate)
        reached = loudness(samples * gain, rate)
        if abs(target - reached) < WITHIN / 25:
            break
        level += target - reached
    if abs(target - reached) > WITHIN:
        _LOG.warning("%.1f LUFS cannot be had under %g dBTP; the track has %.1f LUFS", target, CEILING, reached)
    return gain


def _limiter(samples: Samples, rate: int) -> Samples:
    """Gains [N] of at most 1 that hold the true peak under the ceiling: each is a mean of what its neighbours need."""
    highest = np.float32(10 ** ((CEILING - _MARGIN) / 20))
    need = np.minimum(1.0, highest / np.maximum(_peaks(samples), highest)).astype(np.float32)
    if need.min(initial=1.0) == 1.0:
        return need
    from scipy.ndimage import convolve1d, minimum_filter1d

    width = 2 * round(_LOOK_SECONDS * rate) + 1
    window = np.hanning(width + 2)[1:-1].astype(np.float32)
    # a mean over `width` of minima over `width` is nowhere above what the sample in the middle needs
    gains: Samples = convolve1d(minimum_filter1d(need, width), window / window.sum(), mode="nearest")
    return gains


def _peaks(samples: Samples) -> Samples:
    """The highest magnitude between each sample and the next [N], at 4 points a sample (BS.1770-4, annex 2)."""
    from scipy.signal import resample_poly

    padded = np.pad(samples, _EDGE)
    peaks = np.zeros_like(samples)
    for first in range(0, len(samples), _CHUNK):
        chunk = padded[first : first + _CHUNK + 2 * _EDGE]
        fine = np.abs(resample_poly(chunk, _OVERSAMPLING, 1)).reshape(-1, _OVERSAMPLING).max(axis=1)
        here = fine[_EDGE : len(chunk) - _EDGE]
        peaks[first : first + len(here)] = here
    return peaks


@cache
def _meter(rate: int) -> pyloudnorm.Meter:
    import pyloudnorm

    return pyloudnorm.Meter(rate, block_size=_BLOCK_SECONDS)
