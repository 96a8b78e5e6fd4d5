"""Whether a take says its text, by a recognizer that writes down what it hears."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

from csm_cli.audio.io import Audio
from csm_cli.errors import ModelNotFound, UsageError
from csm_cli.generation.take import Take, Transcription

MAX_WORD_ERROR_RATE = 0.25  # of the words; one wrong word is always let pass, for recognizers err too
MAX_WRONG_RUN = 3  # wrong words in a row: more are a phrase that was lost or made up

_ITS_RATE = 16_000
_MISSING = "--verify needs a recognizer; pip install 'csm-cli[verify]'"


class Recognizer(Protocol):
    """Writes down what is said."""

    def transcribe(self, audio: Audio) -> str: ...


class WhisperRecognizer:
    """faster-whisper's recognizer, loaded at the first take. name: a size such as base.en, a Hub id or a folder.

    Raises:
        UsageError: it is not installed.
    """

    def __init__(self, name: str) -> None:
        if any(find_spec(module) is None for module in ("faster_whisper", "jiwer", "whisper_normalizer")):
            raise UsageError(_MISSING)
        self._name = name
        self._model: Any = None

    def transcribe(self, audio: Audio) -> str:
        """The words of `audio`.

        Raises:
            ModelNotFound: there is no such model, or it cannot be had.
        """
        import soxr

        self._model = self._model or _load(self._name)
        samples = soxr.resample(audio.samples, audio.rate, _ITS_RATE)
        segments, _ = self._model.transcribe(samples, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)


def _load(name: str) -> Any:
    from faster_whisper import WhisperModel

    try:
        return WhisperModel(name)
    except Exception as problem:  # the hub's, the system's and the library's own
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ModelNotFound(f"--verify-model {name}: cannot be loaded ({first}); name a size or a folder") from problem


def apply_transcription(take: Take, heard: str, texts: Sequence[str]) -> Take:
    """`take` with what was heard of it, and its fault if that is none of `texts`: as written, as spelled for speech."""
    hearing = min((compare(text, heard) for text in texts), key=lambda each: (each.error_rate, each.run))
    return replace(take, transcription=hearing, fault=take.fault or _trouble(hearing, texts[0]))


def compare(text: str, heard: str) -> Transcription:
    """How far `heard` is from `text`, both without case, punctuation and ways to write a number."""
    import jiwer

    wanted, got = _words(text), _words(heard)
    if not wanted:
        return Transcription(heard, 0.0, 0)
    aligned = jiwer.process_words(" ".join(wanted), " ".join(got))
    return Transcription(heard, float(aligned.wer), max(_runs(aligned.alignments[0]), default=0))


def _runs(chunks: Sequence[Any]) -> Iterator[int]:
    """Lengths of runs of wrong words, missing and added ones counted."""
    run = 0
    for chunk in chunks:
        if chunk.type == "equal":
            run = 0
            continue
        run += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        yield run


def _trouble(hearing: Transcription, text: str) -> str:
    wrong = round(hearing.error_rate * len(_words(text)))
    if hearing.run <= MAX_WRONG_RUN and (hearing.error_rate <= MAX_WORD_ERROR_RATE or wrong <= 1):
        return ""
    return f'was heard as "{hearing.text}" ({hearing.error_rate:.0%} of its words wrong, {hearing.run} in a row)'


def _words(text: str) -> list[str]:
    return [word for word in str(_normalizer()(text)).split() if any(char.isalnum() for char in word)]


@cache
def _normalizer() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
