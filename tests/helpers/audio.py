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


def write_m4a(path: Path, samples: NDArray[np.float32]) -> Path:
    """Mono AAC in MP4, as phones record it."""
    import av

    with av.open(str(path), "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler("fltp", "mono", RATE, stream.codec_context.frame_size)
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(each))
        file.mux(stream.encode())
    return path


RATE = 24000


WORDS = VoiceInfo("The market opens early in the morning, and we buy bread and apples there.", "CC0", "a test")


def speech(seconds: float = 6.0, level: float = 0.3, noise: float = 0.0) -> NDArray[np.float32]:
    """Syllables of a tone, with pauses between them."""
    time = np.arange(round(seconds * RATE)) / RATE
    spoken = (np.sin(2 * np.pi * 2 * time) > -0.3) * np.sin(2 * np.pi * 220 * time) * level
    random = np.random.default_rng(0).normal(size=len(time)) * noise
    return (spoken + random).astype(np.float32)
