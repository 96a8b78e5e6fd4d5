"""What a voice is measured against: the held-out sentences as espeak-ng says them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import numpy as np

from csm_cli.errors import CsmError
from csm_cli.recipe import lexicon
from csm_cli.recipe.acoustic_distance import acoustic_features
from csm_cli.recipe.corpus import VOICES, render_espeak
from csm_cli.recipe.espeak import Espeak, EspeakVoice
from csm_cli.recipe.sentences import WORD_LIST, held_out_sentences
from csm_cli.recipe.sounds import Features, Samples, voice_print

DEFAULT = EspeakVoice("en-us")
"""The voice of `espeak-ng -v en-us` with its defaults."""

_SEMITONE = 0.5  # what tells pitches apart, of voices that never change theirs

_PRINTED = 24


class Reference:
    """Renderings of the held-out sentences, and of others, in the corpus's voices.

    Raises:
        CsmError: espeak-ng or the word list is not installed.
    """

    def __init__(self) -> None:
        try:
            self._espeak = Espeak()
        except OSError as problem:
            raise CsmError("espeak-ng is missing, which the figures compare with; apt install espeak-ng") from problem
        if not WORD_LIST.exists():
            raise CsmError(f"{WORD_LIST} is missing, of which held-out sentences are made; apt install wamerican")
        self.texts = held_out_sentences()
        self._features: dict[tuple[str, EspeakVoice], Features] = {}
        self._deviation: Features | None = None

    def speech(self, text: str, voice: EspeakVoice = DEFAULT) -> Samples:
        """A rendering at the corpus's rate, in whole frames."""
        samples: Samples = render_espeak(self._espeak, text, voice)[0].astype(np.float32) / np.float32(32768)
        return samples

    def features(self, text: str, voice: EspeakVoice = DEFAULT) -> Features:
        """What `measure.distance` compares, of a rendering."""
        if (text, voice) not in self._features:
            self._features[text, voice] = acoustic_features(self.speech(text, voice))
        return self._features[text, voice]

    def closest_voice(self, take: Samples, text: str) -> int:
        """The voice whose rendering of `text` has the nearest voice print, in deviations from text to text."""
        prints = np.stack([voice_print(self.speech(text, voice)) for voice in VOICES])  # [voices, 13]
        apart = (prints - voice_print(take)) / self.deviation
        return int((apart**2).sum(axis=1).argmin())

    @property
    def deviation(self) -> Features:
        """How much a voice's prints differ from one text to the next: [13]."""
        if self._deviation is None:
            texts = self.texts[:_PRINTED]
            prints = np.array([[voice_print(self.speech(text, voice)) for text in texts] for voice in VOICES])
            self._deviation = np.sqrt(prints.var(axis=1).mean(axis=0))
            self._deviation[-1] = max(self._deviation[-1], _SEMITONE)
        return self._deviation

    def minimal_pairs(self, count: int = 20) -> list[tuple[str, str]]:
        """The first held-out sentences with a plain noun, each with its like: that noun replaced by the one spelled
        most alike."""
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
        like = max(others, key=lambda other: difflib.SequenceMatcher(None, noun, other).ratio())
        yield text, re.sub(rf"\b{noun}\b", like, text, count=1)
