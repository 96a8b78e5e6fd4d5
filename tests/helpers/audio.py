"""Audio files and speech-like signals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.voices.store import (
    VoiceInfo,
)


def write_tone(path: Path, seconds: float = 0.5, rate: int = 24000) -> Path:
    """A second voice for context: a soft sine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


RATE = 24000


WORDS = VoiceInfo("The market opens early in the morning, and we buy bread and apples there.", "CC0", "a test")


def speech(seconds: float = 6.0, level: float = 0.3, noise: float = 0.0) -> NDArray[np.float32]:
    """Syllables of a tone, with pauses between them."""
    time = np.arange(round(seconds * RATE)) / RATE
    spoken = (np.sin(2 * np.pi * 2 * time) > -0.3) * np.sin(2 * np.pi * 220 * time) * level
    random = np.random.default_rng(0).normal(size=len(time)) * noise
    return (spoken + random).astype(np.float32)
