"""Time stretching: the length that was asked for, at the same pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.tempo import change_tempo

VOICES = sorted((Path(__file__).parents[2] / "csm_cli" / "assets").rglob("*.flac"))[:3]


def pitch(samples: NDArray[np.float32], rate: int) -> float:
    """The median F0 in Hz, by autocorrelation of the loud frames."""
    size, found = round(0.05 * rate), []
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    level = np.sqrt(np.square(frames).mean(axis=1))
    for frame in frames[level > 0.5 * level.max()]:
        correlation = np.correlate(frame, frame, "full")[size - 1 :]
        lags = slice(rate // 400, rate // 70)
        found.append(rate / (lags.start + int(correlation[lags].argmax())))
    return float(np.median(found))


@pytest.mark.parametrize("path", VOICES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_speech_changes_its_length_and_not_its_pitch(path: Path, speed: float) -> None:
    samples, rate = soundfile.read(path, dtype="float32")
    changed = change_tempo(samples, rate, speed)
    assert len(changed) == round(len(samples) / speed)
    assert pitch(changed, rate) == pytest.approx(pitch(samples, rate), rel=0.02)
    assert np.sqrt(np.square(changed).mean()) == pytest.approx(np.sqrt(np.square(samples).mean()), rel=0.05)


def test_speed_1_changes_nothing() -> None:
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert change_tempo(samples, 24000, 1.0) is samples


@pytest.mark.parametrize("length", [0, 1, 100, 2000])
def test_tiny_clips(length: int) -> None:
    assert len(change_tempo(np.ones(length, np.float32), 24000, 0.8)) == round(length / 0.8)
