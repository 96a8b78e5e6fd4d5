"""Warnings about clips that a voice is taken from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.audio import RATE, speech
from numpy.typing import NDArray

from csm_cli.audio.clip_checks import clip_warnings, require_sound
from csm_cli.audio.io import Audio, read_audio
from csm_cli.errors import AudioUnreadable
from csm_cli.voices.store import list_voices


def noise(seconds: float = 3.0, colour: float = 0.0, level: float = 0.1) -> NDArray[np.float32]:
    """Noise whose power falls with the frequency to the power of `colour`: 0 white, 1 pink."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(size=round(seconds * RATE)))
    spectrum /= (np.arange(len(spectrum)) + 1) ** (colour / 2)
    samples = np.fft.irfft(spectrum)
    return (samples * level / np.std(samples)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "kinds"),
    [
        (speech(6.0), set()),
        (speech(0.5), set()),
        (speech(6.0, noise=0.1), {"noise"}),
        (noise(), {"noise"}),
        (noise(0.5), {"noise"}),
        (noise(0.5, colour=1.0), {"noise"}),
        (noise(3.0, colour=2.0), {"noise"}),
        (speech(0.03), {"too short"}),
        (np.zeros(RATE, np.float32), {"silence"}),
        (np.full(RATE, 0.3, np.float32), {"silence"}),  # a constant level
        (noise(1.0, level=1e-4), {"silence"}),
        (np.zeros(0, np.float32), {"silence"}),
    ],
)
def test_each_fault_has_its_kind(samples: NDArray[np.float32], kinds: set[str]) -> None:
    assert clip_warnings(Audio(samples, RATE)).keys() == kinds


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_rate_does_not_matter(rate: int) -> None:
    samples = np.random.default_rng(0).normal(size=rate).astype(np.float32) * 0.1
    assert clip_warnings(Audio(samples, rate)).keys() == {"noise"}


def test_the_bundled_voices_have_no_faults() -> None:
    assert not any(clip_warnings(read_audio(voice.audio, RATE)) for voice in list_voices())


def test_silence_is_refused_by_name() -> None:
    with pytest.raises(AudioUnreadable, match=r"^a\.wav: is silent"):
        require_sound(Audio(np.zeros(RATE, np.float32), RATE), "a.wav")


@pytest.mark.parametrize("gain", [-1.0, -0.9, -0.6])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_of_channels_that_cancel_each_other_one_is_used(tmp_path: Path, gain: float, offset: float) -> None:
    stereo = np.stack([gain * speech(), speech()], axis=1) + np.float32(offset)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", RATE, start=1.0, end=4.0)
    louder = 1 if gain > -1 else 0
    assert np.array_equal(audio.samples, stereo[RATE : 4 * RATE, louder])
    assert clip_warnings(audio).keys() == {"out of phase"}
    assert f"channel {louder + 1}" in clip_warnings(audio)["out of phase"]


@pytest.mark.parametrize("other", [speech(), 0.2 * speech(), np.zeros_like(speech()), noise(6.0)])
def test_of_other_channels_the_mean_is_used(tmp_path: Path, other: NDArray[np.float32]) -> None:
    stereo = np.stack([speech(), other], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", RATE)
    assert np.allclose(audio.samples, stereo.mean(axis=1)) and not audio.notes
