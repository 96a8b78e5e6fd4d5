"""What makes a recording a poor example of a voice: silence, too little sound, noise, channels that cancel. No torch.

The one definition for context, voices, datasets and the server.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.decoders import AudioBytes
from csm_cli.audio.io import Audio
from csm_cli.errors import AudioUnreadable

MIN_CLIP_SECONDS = 0.2  # less is part of a syllable
SILENT_LEVEL = 2e-3  # of full scale, -54 dBFS: RMS level of a frame without speech
FRAME_SECONDS = 0.02
NOISY_DB = 25.0  # least distance of speech over the pauses between words
_MIN_PAUSE_SECONDS = 2.0  # a shorter clip may have no pause between words
_QUIET_PERCENT, _LOUD_PERCENT = 5, 90
# Spectral flatness from 100 to 4000 Hz, the geometric by the arithmetic mean of the power: 0.56 for white noise, 0.39
# for pink noise, 0.05 or less for speech (the median over frames; measured with the bundled voices, noise added too).
_NOISE_FLATNESS = 0.25
_FLATNESS_HZ = (100.0, 4000.0)
_FLATNESS_SECONDS = 0.04
_MAX_FLATNESS_FRAMES = 500  # spread over the clip


def require_sound(audio: Audio, name: Path | AudioBytes | str) -> Audio:
    """The clip, which has to have sound.

    Raises:
        AudioUnreadable: it is silent.
    """
    if is_silent(audio):
        raise AudioUnreadable(f"{name}: is silent; record it louder, or name another clip")
    return audio


def clip_warnings(audio: Audio) -> dict[str, str]:
    """What is wrong with a clip, by kind: "silence", "too short", "noise", "out of phase"."""
    warnings = {"out of phase": "; ".join(audio.notes)} if audio.notes else {}
    centred = _centred(audio)
    levels = frame_levels(centred)
    if levels.max(initial=0.0) <= SILENT_LEVEL:
        return warnings | {"silence": "is silent"}
    if audio.duration < MIN_CLIP_SECONDS:
        seconds = f"{1000 * audio.duration:.0f} ms of sound"
        return warnings | {"too short": f"{seconds} is too short to take a voice from; 5 to 15 s make a good voice"}
    if _flatness(centred) > _NOISE_FLATNESS:
        return warnings | {"noise": "sounds like noise without speech; name a clip of clear speech"}
    if audio.duration >= _MIN_PAUSE_SECONDS:
        quiet, loud = np.percentile(levels, (_QUIET_PERCENT, _LOUD_PERCENT))
        if loud < 10 ** (NOISY_DB / 20) * quiet:
            distance = f"speech is {20 * np.log10(loud / quiet):.0f} dB above the pauses between words"
            return warnings | {"noise": f"is noisy: {distance}, {NOISY_DB:.0f} dB are clean"}
    return warnings


def is_silent(audio: Audio) -> bool:
    """Whether no frame has sound; a constant level is none."""
    return bool(frame_levels(_centred(audio)).max(initial=0.0) <= SILENT_LEVEL)


def _centred(audio: Audio) -> Audio:
    """Without the constant level that some recorders add."""
    level = np.float32(audio.samples.sum(dtype=np.float64) / max(1, len(audio.samples)))
    return Audio(audio.samples - level, audio.rate)


def frame_levels(audio: Audio) -> NDArray[np.float64]:
    """RMS levels of frames of 20 ms, including a partial frame at the end."""
    size = max(1, round(FRAME_SECONDS * audio.rate))
    starts = np.arange(0, len(audio.samples), size)
    if not len(starts):
        return np.zeros(0)
    counts = np.minimum(size, len(audio.samples) - starts)
    levels: NDArray[np.float64] = np.sqrt(np.add.reduceat(np.square(audio.samples, dtype=np.float64), starts) / counts)
    return levels


def _flatness(audio: Audio) -> float:
    """The median spectral flatness of the frames that have sound; 0 where there is none."""
    size = round(_FLATNESS_SECONDS * audio.rate)
    count = len(audio.samples) // max(1, size)
    if count == 0 or audio.rate < 2 * _FLATNESS_HZ[1]:
        return 0.0
    frames = audio.samples[: count * size].reshape(count, size)[:: -(-count // _MAX_FLATNESS_FRAMES)]
    frames = frames[np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1)) > SILENT_LEVEL]
    if not len(frames):
        return 0.0
    frequencies = np.fft.rfftfreq(size, 1 / audio.rate)
    band = (frequencies >= _FLATNESS_HZ[0]) & (frequencies <= _FLATNESS_HZ[1])
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))[:, band] ** 2 + 1e-20
    return float(np.median(np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)))
