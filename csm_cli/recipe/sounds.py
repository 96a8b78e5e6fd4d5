"""Which of several recordings another one resembles: by its words, and by its voice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csm_cli.recipe.acoustic_distance import acoustic_features, dtw_distance
from csm_cli.recipe.corpus import FRAME, RATE

Samples = NDArray[np.float32]
Features = NDArray[np.float64]

_HOP = 480
_WINDOW = 1536  # two periods of 32 Hz
_LOWEST, _HIGHEST = 50.0, 500.0  # Hz


def trim_silence(samples: Samples) -> Samples:
    """`samples`, or one frame of silence where there are too few to measure."""
    return samples if len(samples) >= FRAME else np.zeros(FRAME, np.float32)


def nearest(take: Samples, references: Sequence[Features]) -> int:
    """Index of the rendering that `take` is nearest to, by MFCC and dynamic time warping."""
    mine = acoustic_features(trim_silence(take))
    return int(np.argmin([dtw_distance(mine, reference) for reference in references]))


def cut_at_sentences(take: Samples, sentences: Sequence[Features]) -> list[Samples]:
    """The parts of a take that dynamic time warping lays on these sentences, in their order."""
    import librosa

    speech, _ = librosa.effects.trim(trim_silence(take), top_db=35)
    _, path = librosa.sequence.dtw(acoustic_features(speech), np.concatenate(sentences, axis=1), metric="euclidean")
    here, there = path[::-1].T
    ends = np.cumsum([each.shape[1] for each in sentences])[:-1]
    cuts = here[np.searchsorted(there, ends)] * _HOP
    return np.split(speech, cuts)


def voice_print(take: Samples) -> Features:
    """Who speaks: mean MFCCs 1..12 and median pitch in semitones, over the loud frames: [13].

    Pitch is YIN's (de Cheveigné and Kawahara 2002).
    """
    import librosa

    speech, _ = librosa.effects.trim(trim_silence(take), top_db=35)
    speech = trim_silence(speech)
    cepstra = librosa.feature.mfcc(y=speech, sr=RATE, n_mfcc=13, n_fft=1024, hop_length=_HOP, n_mels=40)[1:]
    pitch = librosa.yin(speech, fmin=_LOWEST, fmax=_HIGHEST, sr=RATE, frame_length=_WINDOW, hop_length=_HOP)
    level = librosa.feature.rms(y=speech, frame_length=_WINDOW, hop_length=_HOP)[0]
    loud = level >= 0.3 * np.percentile(level, 95)
    semitones = 12 * np.log2(np.median(pitch[loud]) / _LOWEST)
    return np.append(cepstra[:, loud].mean(axis=1), semitones)
