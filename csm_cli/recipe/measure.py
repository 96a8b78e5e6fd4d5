"""Measures of speech: distance by MFCC and dynamic time warping, voice prints, recognition, espeak-ng references."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from csm_cli.errors import CsmError
from csm_cli.recipe import lexicon
from csm_cli.recipe.corpus import FRAME, RATE, VOICES, Espeak, EspeakVoice, render_espeak
from csm_cli.recipe.sentences import WORD_LIST, held_out_sentences

Samples = NDArray[np.float32]
Features = NDArray[np.float64]

DEFAULT = EspeakVoice("en-us")
"""The voice of `espeak-ng -v en-us` with its defaults."""
CHOICES = 20
NO_POCKETSPHINX = "pocketsphinx is not installed; pip install 'csm-cli[bench]'"

_HOP = 480
_PITCH_WINDOW = 1536  # two periods of 32 Hz
_LOWEST, _HIGHEST = 50.0, 500.0  # Hz
_RECOGNIZER_RATE = 16_000
_MARGIN = 0.3  # seconds of near silence, for the recognizer to detect the end
_NOISE = 1e-3  # the recognizer was not trained on digital silence
_BEAMS = {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80}  # wide: the grammar is small, the voices are unusual
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


def cut_at_sentences(take: Samples, sentences: Sequence[Features]) -> list[Samples]:
    """The parts of a take that dynamic time warping aligns with these sentences, in their order."""
    import librosa

    speech, _ = librosa.effects.trim(at_least_one_frame(take), top_db=35)
    _, path = librosa.sequence.dtw(acoustic_features(speech), np.concatenate(sentences, axis=1), metric="euclidean")
    take_path, sentence_path = path[::-1].T
    ends = np.cumsum([each.shape[1] for each in sentences])[:-1]
    cuts = take_path[np.searchsorted(sentence_path, ends)] * _HOP
    return np.split(speech, cuts)


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


def can_recognize() -> bool:
    return find_spec("pocketsphinx") is not None


class PhoneRecognizer:
    """pocketsphinx with a grammar of 20 sentences, of which it chooses one.

    texts: those whose words are all in its dictionary are used, in groups of 20 in their order.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(lm=None, cmn="batch", bestpath=False, loglevel="FATAL", **_BEAMS)
        known = [text for text in texts if self._is_known(text)]
        self.groups = [known[start : start + CHOICES] for start in range(0, len(known) - CHOICES + 1, CHOICES)]

    def hits(self, takes: Mapping[str, Samples]) -> list[bool]:
        """For each take whose text is in a group: whether it was recognized as that text."""
        hits: list[bool] = []
        for group in self.groups:
            texts = [text for text in group if text in takes]
            if texts:
                choices = " | ".join(map(_normalize, group))
                grammar = f"#JSGF V1.0; grammar choices; public <choice> = {choices};"
                self._decoder.add_jsgf_string("choices", grammar)
                self._decoder.activate_search("choices")
                hits += [self._recognize(takes[text]) == _normalize(text) for text in texts]
        return hits

    def _is_known(self, text: str) -> bool:
        words = _normalize(text).split()
        return not re.search(r"\d", text) and all(self._decoder.lookup_word(word) for word in words)

    def _recognize(self, take: Samples) -> str | None:
        self._decoder.start_utt()
        self._decoder.process_raw(_pcm(take), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else None


def _normalize(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def _pcm(take: Samples) -> bytes:
    import soxr

    samples = np.pad(soxr.resample(at_least_one_frame(take), RATE, _RECOGNIZER_RATE), round(_MARGIN * _RECOGNIZER_RATE))
    noisy = samples + _NOISE * np.random.default_rng(0).standard_normal(len(samples))
    return bytes((np.clip(noisy, -1, 1) * 32767).astype(np.int16).tobytes())


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

    def closest_voice(self, take: Samples, text: str) -> int:
        """Index of the voice in `VOICES` whose rendering of `text` has the nearest voice print."""
        prints = np.stack([voice_print(self.speech(text, voice)) for voice in VOICES])  # [voices, 13]
        distances = (((prints - voice_print(take)) / self.deviation) ** 2).sum(axis=1)
        return int(distances.argmin())

    @property
    def deviation(self) -> Features:
        """Standard deviation [13] of a voice's print from text to text."""
        if self._deviation is None:
            texts = self.texts[:_PRINT_TEXTS]
            prints = np.array([[voice_print(self.speech(text, voice)) for text in texts] for voice in VOICES])
            self._deviation = np.sqrt(prints.var(axis=1).mean(axis=0))
            self._deviation[-1] = max(self._deviation[-1], _MIN_PITCH_DEVIATION)
        return self._deviation

    def minimal_pairs(self, count: int = 20) -> list[tuple[str, str]]:
        """The first held-out sentences with an everyday noun, each with a copy where the most similarly spelled noun
        replaces it."""
        pairs = (pair for text in self.texts for pair in _pair(text))
        return [pair for pair, _ in zip(pairs, range(count), strict=False)]

    def paragraph(self, words: int = 60) -> list[str]:
        """The first held-out sentences that together have at least this many words."""
        totals = np.cumsum([len(text.split()) for text in self.texts])
        return self.texts[: int(np.searchsorted(totals, words)) + 1]


_OTHER_WORDS = (lexicon.ADJECTIVES, lexicon.PAST_VERBS, lexicon.BASE_VERBS, lexicon.MOTION, lexicon.PREPOSITIONS)
_PLAIN_NOUNS = [noun for noun in lexicon.NOUNS if not any(noun in words for words in _OTHER_WORDS)]


def _pair(text: str) -> Iterator[tuple[str, str]]:
    noun = next((word for word in re.findall(r"[A-Za-z]+", text) if word in _PLAIN_NOUNS), None)
    if noun:
        others = [other for other in _PLAIN_NOUNS if other != noun]
        similar = max(others, key=lambda other: difflib.SequenceMatcher(None, noun, other).ratio())
        yield text, re.sub(rf"\b{noun}\b", similar, text, count=1)
