from __future__ import annotations

import logging

import numpy as np
import pyloudnorm
import pytest
from numpy.typing import NDArray

from csm_cli.audio.loudness import MAX_TRUE_PEAK, TOLERANCE, loudness, master, true_peak

RATE = 24000


def sine(hertz: float, seconds: float, level: float = 1.0, phase: float = 0.0) -> NDArray[np.float32]:
    turns = hertz * np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * turns + phase)).astype(np.float32)


def speechlike(seconds: float, level: float = 0.1, seed: int = 0) -> NDArray[np.float32]:
    """Noise in syllables, with a few clicks that stand far out of it."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE)
    samples = level * random.standard_normal(count) * np.abs(np.sin(np.arange(count) / RATE * 9))
    samples[random.integers(0, count, max(1, count // 6000))] *= 12
    return samples.astype(np.float32)


@pytest.mark.parametrize("decibels", [0.0, -20.0])
def test_a_sine_of_997_hertz_is_3_01_below_full_scale(decibels: float) -> None:
    """BS.1770-4, annex 1."""
    assert loudness(sine(997, 3, 10 ** (decibels / 20)), RATE) == pytest.approx(decibels - 3.01, abs=0.1)


def test_pauses_do_not_count() -> None:
    spoken = sine(997, 2, 0.1)
    gaps = np.concatenate((spoken, np.zeros(10 * RATE, np.float32), spoken))
    assert loudness(gaps, RATE) == pytest.approx(loudness(spoken, RATE), abs=0.5)


def test_audio_shorter_than_a_block_is_measured() -> None:
    assert loudness(sine(1000, 0.05, 0.1), RATE) == pytest.approx(loudness(sine(1000, 3, 0.1), RATE), abs=0.3)
    assert loudness(np.zeros(10, np.float32), RATE) == -np.inf == loudness(np.zeros(0, np.float32), RATE)


@pytest.mark.parametrize("rate", [8000, 11025, 24000, 48000])
def test_it_is_what_pyloudnorm_measures(rate: int) -> None:
    levels = np.repeat(10.0 ** np.array([-1, -4, -2, -3, -1.5, -8]), rate)  # under each gate, and above
    for count in (int(0.41 * rate), 2 * rate + 7, len(levels)):
        samples = (np.random.default_rng(count).standard_normal(count) * levels[:count]).astype(np.float32)
        measured = pyloudnorm.Meter(rate).integrated_loudness(samples.astype(np.float64))
        assert loudness(samples, rate) == pytest.approx(measured, abs=1e-9)


def test_a_true_peak_lies_between_samples() -> None:
    wave = sine(RATE / 4, 0.5, phase=np.pi / 4)
    assert np.abs(wave).max() == pytest.approx(0.7071, abs=1e-3)
    assert true_peak(wave[100:-100]) == pytest.approx(0.0, abs=0.6)
    assert true_peak(np.zeros(10, np.float32)) == -np.inf


@pytest.mark.parametrize("target", [-30.0, -19.0, -14.0])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 4.0, 30.0])
def test_a_target_is_reached_under_the_true_peak_limit(seconds: float, target: float) -> None:
    samples = speechlike(seconds)
    mastered = samples * master(samples, RATE, target)
    assert loudness(mastered, RATE) == pytest.approx(target, abs=TOLERANCE)
    assert true_peak(mastered) <= MAX_TRUE_PEAK


def test_without_limiting_the_gain_is_constant() -> None:
    gain = master(sine(997, 2, 0.1), RATE, -25.0)
    assert np.ptp(gain) == 0


def test_silence_is_not_changed() -> None:
    assert np.array_equal(master(np.zeros(100, np.float32), RATE, -19.0), np.ones(100))


def test_a_target_that_cannot_be_reached_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mastered = (samples := speechlike(3)) * master(samples, RATE, -1.0)
    assert "cannot be reached" in caplog.text and true_peak(mastered) <= MAX_TRUE_PEAK
