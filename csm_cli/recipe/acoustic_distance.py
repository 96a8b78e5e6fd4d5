"""The gate: is a take nearest to espeak-ng's rendering of its own text, by MFCC and dynamic time warping?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from csm_cli.recipe.corpus import RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_HOP = 480


def acoustic_features(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """MFCCs 1..12 of a take at 24 kHz every 20 ms, normalized over the take: [12, T]; silent edges are cut."""
    import librosa

    speech, _ = librosa.effects.trim(samples, top_db=35)
    if len(speech) < 2 * _HOP:
        speech = samples
    cepstra = librosa.feature.mfcc(y=speech, sr=RATE, n_mfcc=13, n_fft=1024, hop_length=_HOP, n_mels=40)[1:]
    centered = cepstra - cepstra.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = centered / (centered.std(axis=1, keepdims=True) + 1e-3)
    return scaled


def dtw_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Dynamic time warping's cost over the lengths of both."""
    import librosa

    cost = librosa.sequence.dtw(first, second, metric="euclidean", backtrack=False)
    steps: int = first.shape[1] + second.shape[1]
    return float(cost[-1, -1]) / steps


def retrieval(takes: Sequence[NDArray[np.float32]], renderings: Sequence[NDArray[np.float32]]) -> float:
    """Share of takes whose nearest rendering has the same index."""
    references = [acoustic_features(samples) for samples in renderings]
    hits = 0
    for index, samples in enumerate(takes):
        mine = acoustic_features(samples)
        hits += int(np.argmin([dtw_distance(mine, reference) for reference in references])) == index
    return hits / len(takes)
