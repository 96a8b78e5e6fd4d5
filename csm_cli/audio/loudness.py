"""Loudness of speech: measured as in ITU-R BS.1770-4, and normalized in the manner of EBU R128.

Levels are of mono samples, float32 [N]. Loudness in LUFS, gains and differences in dB.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

MAX_TRUE_PEAK = -1.0  # dBTP
MIN_LUFS, MAX_LUFS = -70.0, -5.0  # targets: from the meter's absolute gate to where speech is a square wave
TOLERANCE = 0.5  # LU from the target
_PEAK_MARGIN = 0.1  # dB, for meters that interpolate with more than our 4 points a sample
_BLOCK_SECONDS = 0.4  # of the meter; each begins a fourth of one later
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, and LU below the mean of what is above the first
_OFFSET = -0.691  # dB, of loudness from power
_OVERSAMPLING = 4
_LIMITER_SECONDS = 0.01  # attack before a peak, and release after it
_MAX_ITERATIONS = 8
_CHUNK_SAMPLES = 1 << 18  # oversampled at a time
_FILTER_MARGIN = 64  # samples around a chunk that the oversampling filter uses

Samples = NDArray[np.float32]


def loudness(samples: Samples, rate: int) -> float:
    """Integrated loudness, gated, so that pauses do not count; -inf for silence.

    Audio shorter than the meter's block of 0.4 s is measured as if repeated. As pyloudnorm measures it, with its
    filters: both in one pass, and all blocks at once.
    """
    from scipy.signal import sosfilt

    min_samples = int(_BLOCK_SECONDS * rate) + 1
    if not samples.any():
        return -np.inf
    if len(samples) < min_samples:
        samples = np.tile(samples, -(-min_samples // len(samples)))
    block = _BLOCK_SECONDS * rate
    starts = np.arange(int(np.round(4 * (len(samples) / block - 1))) + 1) * block / 4
    bounds = np.stack((starts, starts + block), axis=1).astype(int)  # [blocks, 2]
    energy = np.zeros(max(len(samples), bounds[-1, 1]) + 1)
    energy[: len(samples)] = sosfilt(_weighting(rate), samples.astype(np.float64))
    powers = np.add.reduceat(np.square(energy, out=energy), bounds.ravel())[::2] / block
    with np.errstate(divide="ignore"):
        levels = _OFFSET + 10 * np.log10(powers)
        loud = levels >= _ABSOLUTE_GATE
        if not loud.any():
            return -np.inf
        gate = _OFFSET + 10 * np.log10(powers[loud].mean()) + _RELATIVE_GATE
        return float(_OFFSET + 10 * np.log10(powers[loud & (levels > gate)].mean()))


def true_peak(samples: Samples) -> float:
    """The peak of the interpolated waveform in dBTP; -inf for silence."""
    with np.errstate(divide="ignore"):
        return float(20 * np.log10(_interpolated_peaks(samples).max(initial=0.0)))


def master(samples: Samples, rate: int, target: float) -> Samples:
    """The gain of each sample [N] that brings the whole to `target` LUFS with a true peak under `MAX_TRUE_PEAK`.

    One gain for all, reduced smoothly around peaks that would be too high. If the target cannot be reached, the actual
    loudness is logged.
    """
    reached = loudness(samples, rate)
    if not np.isfinite(reached):
        return np.ones_like(samples)
    gain_db = target - reached
    for _ in range(_MAX_ITERATIONS):
        constant = np.float32(10 ** (gain_db / 20))
        gain = constant * _limiter(samples * constant, rate)
        reached = loudness(samples * gain, rate)
        if abs(target - reached) < TOLERANCE / 25:
            break
        gain_db += target - reached
    if abs(target - reached) > TOLERANCE:
        _LOG.warning(
            "%.1f LUFS cannot be reached with a true peak under %g dBTP; the track has %.1f LUFS",
            target,
            MAX_TRUE_PEAK,
            reached,
        )
    return gain


def _limiter(samples: Samples, rate: int) -> Samples:
    """Gains [N] of at most 1 that hold the true peak under the maximum."""
    highest = np.float32(10 ** ((MAX_TRUE_PEAK - _PEAK_MARGIN) / 20))
    needed = np.minimum(1.0, highest / np.maximum(_interpolated_peaks(samples), highest)).astype(np.float32)
    if needed.min(initial=1.0) == 1.0:
        return needed
    from scipy.ndimage import convolve1d, minimum_filter1d

    width = 2 * round(_LIMITER_SECONDS * rate) + 1
    window = np.hanning(width + 2)[1:-1].astype(np.float32)
    # a mean over `width` of minima over `width` is nowhere above what the sample in the middle needs
    gains: Samples = convolve1d(minimum_filter1d(needed, width), window / window.sum(), mode="nearest")
    return gains


def _interpolated_peaks(samples: Samples) -> Samples:
    """The highest magnitude between each sample and the next [N], at 4 points a sample (BS.1770-4, annex 2)."""
    from scipy.signal import resample_poly

    padded = np.pad(samples, _FILTER_MARGIN)
    peaks = np.zeros_like(samples)
    for first in range(0, len(samples), _CHUNK_SAMPLES):
        chunk = padded[first : first + _CHUNK_SAMPLES + 2 * _FILTER_MARGIN]
        chunk_peaks = np.abs(resample_poly(chunk, _OVERSAMPLING, 1)).reshape(-1, _OVERSAMPLING).max(axis=1)
        chunk_peaks = chunk_peaks[_FILTER_MARGIN : len(chunk) - _FILTER_MARGIN]
        peaks[first : first + len(chunk_peaks)] = chunk_peaks
    return peaks


@cache
def _weighting(rate: int) -> NDArray[np.float64]:
    """The K-weighting of BS.1770-4 at a rate, as sections of second order [2, 6]."""
    import pyloudnorm

    filters = pyloudnorm.Meter(rate)._filters.values()
    return np.array([[*each.b / each.a[0], *each.a / each.a[0]] for each in filters])
