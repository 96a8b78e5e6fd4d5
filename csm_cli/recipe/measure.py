"""Measures of speech: distance by MFCC and dynamic time warping, voice prints, and espeak-ng's renderings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csm_cli.errors import CsmError
from csm_cli.recipe.corpus import FRAME, RATE, VOICES, Espeak, EspeakVoice, render_espeak
from csm_cli.recipe.sentences import WORD_LIST, held_out_sentences

Samples = NDArray[np.float32]
Features = NDArray[np.float64]

DEFAULT = EspeakVoice("en-us")
"""The voice of `espeak-ng -v en-us` with its defaults."""

_HOP = 480
_PITCH_WINDOW = 1536  # two periods of 32 Hz
_LOWEST, _HIGHEST = 50.0, 500.0  # Hz
_MIN_PITCH_DEVIATION = 0.5  # semitones; the pitch of monotone voices does not vary
_PRINT_TEXTS = 24


def acoustic_features(samples: Samples) -> Features:
    """MFCCs 1 to 12 [12, T] every 20 ms of samples at 24 kHz, normalized over time; silent edges are cut."""
    import librosa

    speech, _ = librosa.effects.trim(samples, top_db=35)
    if len(speech) < 2 * _HOP:
        speech = samples
    cepstra = librosa.feature.mfcc(y=speech, sr=RATE, n_mfcc=13, n_fft=1024, hop_length=_HOP, n_mels=40)[1:]
    centered = cepstra - cepstra.mean(axis=1, keepdims=True)
    scaled: Features = centered / (centered.std(axis=1, keepdims=True) + 1e-3)
    return scaled


def dtw_distance(first: Features, second: Features) -> float:
    """Cost of dynamic time warping divided by the lengths of both."""
    import librosa

    cost = librosa.sequence.dtw(first, second, metric="euclidean", backtrack=False)
    steps: int = first.shape[1] + second.shape[1]
    return float(cost[-1, -1]) / steps


def retrieval(takes: Sequence[Samples], renderings: Sequence[Samples]) -> float:
    """Share of takes whose nearest rendering has the same index."""
    references = [acoustic_features(samples) for samples in renderings]
    return sum(nearest(samples, references) == index for index, samples in enumerate(takes)) / len(takes)


def at_least_one_frame(samples: Samples) -> Samples:
    """`samples`, or one frame of silence where they are shorter."""
    return samples if len(samples) >= FRAME else np.zeros(FRAME, np.float32)


def nearest(take: Samples, references: Sequence[Features]) -> int:
    """Index of the reference nearest to `take`, by MFCC and dynamic time warping."""
    features = acoustic_features(at_least_one_frame(take))
    return int(np.argmin([dtw_distance(features, reference) for reference in references]))


def voice_print(take: Samples) -> Features:
    """Features of a voice [13]: mean MFCCs 1 to 12 and median pitch in semitones, over the loud frames.

    Pitch is YIN's (de Cheveigné and Kawahara 2002).
    """
    import librosa

    speech, _ = librosa.effects.trim(at_least_one_frame(take), top_db=35)
    speech = at_least_one_frame(speech)
    cepstra = librosa.feature.mfcc(y=speech, sr=RATE, n_mfcc=13, n_fft=1024, hop_length=_HOP, n_mels=40)[1:]
    pitch = librosa.yin(speech, fmin=_LOWEST, fmax=_HIGHEST, sr=RATE, frame_length=_PITCH_WINDOW, hop_length=_HOP)
    level = librosa.feature.rms(y=speech, frame_length=_PITCH_WINDOW, hop_length=_HOP)[0]
    loud = level >= 0.3 * np.percentile(level, 95)
    semitones = 12 * np.log2(np.median(pitch[loud]) / _LOWEST)
    return np.append(cepstra[:, loud].mean(axis=1), semitones)


class Reference:
    """espeak-ng renderings of the held-out sentences and of others, which generated speech is compared with.

    Raises:
        CsmError: espeak-ng or the word list is not installed.
    """

    def __init__(self) -> None:
        try:
            self._espeak = Espeak()
        except OSError as problem:
            raise CsmError("espeak-ng is not installed; apt install espeak-ng") from problem
        if not WORD_LIST.exists():
            raise CsmError(f"{WORD_LIST} is not installed; apt install wamerican")
        self.texts = held_out_sentences()
        self._features: dict[tuple[str, EspeakVoice], Features] = {}
        self._deviation: Features | None = None

    def speech(self, text: str, voice: EspeakVoice = DEFAULT) -> Samples:
        """Samples at 24 kHz, in whole frames."""
        samples: Samples = render_espeak(self._espeak, text, voice)[0].astype(np.float32) / np.float32(32768)
        return samples

    def features(self, text: str, voice: EspeakVoice = DEFAULT) -> Features:
        """Acoustic features of a rendering."""
        if (text, voice) not in self._features:
            self._features[text, voice] = acoustic_features(self.speech(text, voice))
        return self._features[text, voice]

    @property
    def deviation(self) -> Features:
        """Standard deviation [13] of a voice's print from text to text."""
        if self._deviation is None:
            texts = self.texts[:_PRINT_TEXTS]
            prints = np.array([[voice_print(self.speech(text, voice)) for text in texts] for voice in VOICES])
            self._deviation = np.sqrt(prints.var(axis=1).mean(axis=0))
            self._deviation[-1] = max(self._deviation[-1], _MIN_PITCH_DEVIATION)
        return self._deviation
