"""Speech recognition: compares takes with their text, and gives clips their words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from csm_cli.audio.clip_checks import require_sound
from csm_cli.audio.io import Audio, read_audio, resample
from csm_cli.errors import AudioUnreadable, ModelNotFound, UsageError
from csm_cli.generation.take import Take, Transcription
from csm_cli.types import DEFAULT_LANGUAGE

MAX_WORD_ERROR_RATE = 0.25  # one wrong word is always accepted: recognizers make mistakes too
MAX_ERROR_RUN = 3  # wrong words in a row; a longer run is a phrase that was skipped or added
CHARACTERS_PER_WORD = 2  # of languages without spaces, whose characters are compared
_WHISPER_RATE = 16_000  # Hz
_UNSPACED = frozenset(("zh", "yue", "ja", "th", "lo", "my", "km"))


@dataclass(frozen=True)
class RecognizedWord:
    """A word that a recognizer recognized, and its span in seconds."""

    text: str
    start: float
    end: float


class Recognizer(Protocol):
    """Transcribes speech."""

    def transcribe(self, audio: Audio) -> str: ...

    def words(self, audio: Audio) -> list[RecognizedWord]: ...


class WhisperRecognizer:
    """faster-whisper, loaded at the first use. name: a size such as base.en, a Hub id or a folder.

    language: of the speech; None, or one that Whisper does not know, is detected.

    Raises:
        UsageError: faster-whisper is not installed, or the model knows only English.
    """

    def __init__(self, name: str, language: str | None = None) -> None:
        if any(find_spec(module) is None for module in ("faster_whisper", "jiwer", "whisper_normalizer")):
            raise UsageError("--verify, --word-times and --transcribe need a recognizer; pip install 'csm-cli[verify]'")
        if re.fullmatch(r"[\w.-]+", name) and Path(name).is_dir():  # faster-whisper prefers a folder to a size
            raise UsageError(f"--verify-model {name}: is a size and a folder here; write ./{name} for the folder")
        self._name, self._language = name, main_language(language) if language else None
        self._model: Any = None
        if name.endswith(".en"):
            self._require_language(["en"])

    def load(self) -> Any:
        """The model.

        Raises:
            ModelNotFound: no such model, or it cannot be downloaded. UsageError: it knows only English.
        """
        if self._model is None:
            from faster_whisper import WhisperModel

            try:
                self._model = WhisperModel(self._name, compute_type="auto")  # int8 on CPUs: half the time of float32
            except Exception as problem:  # of the Hub, the system or the library
                reason = (str(problem).splitlines() or [type(problem).__name__])[0]
                raise ModelNotFound(
                    f"--verify-model {self._name}: cannot be loaded ({reason}); name a size or a folder"
                ) from problem
            self._require_language(self._model.supported_languages)
        return self._model

    def transcribe(self, audio: Audio) -> str:
        """The text of `audio`. Raises as `load`."""
        return " ".join(segment.text.strip() for segment in self._segments(audio))

    def words(self, audio: Audio) -> list[RecognizedWord]:
        """The words of `audio` in order, with their times. Raises as `load`."""
        recognized = (word for segment in self._segments(audio, word_timestamps=True) for word in segment.words)
        return [RecognizedWord(word.word.strip(), float(word.start), float(word.end)) for word in recognized]

    def _segments(self, audio: Audio, **options: Any) -> Iterable[Any]:
        model = self.load()
        known = self._language in model.supported_languages
        segments, _ = model.transcribe(
            resample(audio, _WHISPER_RATE).samples,
            language=self._language if known else None,
            beam_size=1,
            temperature=0.0,  # greedy, and only once: what is hard to hear is a bad take
            condition_on_previous_text=False,
            **options,
        )
        return segments  # type: ignore[no-any-return]

    def _require_language(self, languages: Sequence[str]) -> None:
        if list(languages) == ["en"] and self._language not in ("en", None):
            raise UsageError(
                f"--verify-model {self._name}: knows only English; for {self._language}, name base or small"
            )


def transcribe_clip(recognizer: Recognizer, path: Path, start: float | None = None, end: float | None = None) -> str:
    """The words of a recording, or of its range from `start` to `end` seconds.

    Raises:
        AudioUnreadable: it cannot be read, is silent, or no words are recognized. ModelNotFound: as the recognizer.
    """
    audio = require_sound(read_audio(path, _WHISPER_RATE, start, end), path)
    text = " ".join(recognizer.transcribe(audio).split())
    if not any(char.isalnum() for char in text):
        raise AudioUnreadable(f"{path}: no words were recognized in it; name a clip of clear speech, or give its text")
    return text


def apply_transcription(take: Take, transcript: str, texts: Sequence[str], language: str = DEFAULT_LANGUAGE) -> Take:
    """The take with its transcription, and with a fault if that matches none of `texts`: as written, as respelled."""
    compared = [compare(text, transcript, language) for text in texts]
    best = min(compared, key=lambda each: (each.error_rate, each.longest_error_run))
    errors = round(best.error_rate * len(comparable_words(texts[0], language)))
    unit, name = (CHARACTERS_PER_WORD, "characters") if is_unspaced(language) else (1, "words")
    fault = ""
    if errors and not comparable_words(transcript, language):
        fault = "has no words that were recognized"
    elif best.longest_error_run > unit * MAX_ERROR_RUN or (best.error_rate > MAX_WORD_ERROR_RATE and errors > unit):
        detail = f"{best.error_rate:.0%} of its {name} wrong, {best.longest_error_run} in a row"
        fault = f'was recognized as "{transcript}" ({detail})'
    return replace(take, transcription=best, fault=take.fault or fault)


def compare(text: str, transcript: str, language: str = DEFAULT_LANGUAGE) -> Transcription:
    """Counts word errors, ignoring case, punctuation and, in English, how numbers and contractions are written.

    In languages without spaces between words, characters are compared.
    """
    import jiwer

    expected, actual = comparable_words(text, language), comparable_words(transcript, language)
    if not expected:
        return Transcription(transcript, 0.0, 0)
    aligned = jiwer.process_words(" ".join(expected), " ".join(actual))
    run = longest_run = 0
    for chunk in aligned.alignments[0]:
        words = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        run = 0 if chunk.type == "equal" else run + words  # missing and added words count too
        longest_run = max(longest_run, run)
    return Transcription(transcript, float(aligned.wer), longest_run)


def comparable_words(text: str, language: str = DEFAULT_LANGUAGE) -> list[str]:
    """The words of a text as they are compared; its letters and digits in languages without spaces.

    Other languages than English keep their marks, as in Hindi and Thai, which Whisper's basic normalizer removes.
    """
    if main_language(language) == "en":
        return [word for word in str(_english_normalizer()(text)).split() if any(map(str.isalnum, word))]
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return list("".join(letters.split())) if is_unspaced(language) else letters.split()


def main_language(code: str) -> str:
    """`pt` for `pt-BR`."""
    return code.partition("-")[0].lower()


def is_unspaced(language: str) -> bool:
    """Whether a language has no spaces between its words."""
    return main_language(language) in _UNSPACED


@cache
def _english_normalizer() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
