"""Speech recognition: compares takes with their text, and gives clips their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from csm_cli.audio.clip_checks import require_sound
from csm_cli.audio.io import Audio, read_audio, resample
from csm_cli.errors import AudioUnreadable, ModelNotFound, UsageError
from csm_cli.generation.take import Take, Transcription

MAX_WORD_ERROR_RATE = 0.25  # one wrong word is always accepted: recognizers make mistakes too
MAX_ERROR_RUN = 3  # wrong words in a row; a longer run is a phrase that was skipped or added
_WHISPER_RATE = 16_000  # Hz


class Recognizer(Protocol):
    """Transcribes speech."""

    def transcribe(self, audio: Audio) -> str: ...


class WhisperRecognizer:
    """faster-whisper, loaded at the first call. name: a size such as base.en, a Hub id or a folder.

    Raises:
        UsageError: faster-whisper is not installed.
    """

    def __init__(self, name: str) -> None:
        if any(find_spec(module) is None for module in ("faster_whisper", "jiwer", "whisper_normalizer")):
            raise UsageError("--verify and --transcribe need a recognizer; pip install 'csm-cli[verify]'")
        if re.fullmatch(r"[\w.-]+", name) and Path(name).is_dir():  # faster-whisper prefers a folder to a size
            raise UsageError(f"--verify-model {name}: is a size and a folder here; write ./{name} for the folder")
        self._name = name
        self._model: Any = None

    def transcribe(self, audio: Audio) -> str:
        """The words of `audio`.

        Raises:
            ModelNotFound: no such model, or it cannot be downloaded.
        """
        if self._model is None:
            from faster_whisper import WhisperModel

            try:
                self._model = WhisperModel(self._name)
            except Exception as problem:  # of the Hub, the system or the library
                reason = (str(problem).splitlines() or [type(problem).__name__])[0]
                raise ModelNotFound(
                    f"--verify-model {self._name}: cannot be loaded ({reason}); name a size or a folder"
                ) from problem
        samples = resample(audio, _WHISPER_RATE).samples
        segments, _ = self._model.transcribe(samples, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)


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


def apply_transcription(take: Take, transcript: str, texts: Sequence[str]) -> Take:
    """The take with its transcription, and with a fault if that matches none of `texts`: as written, as respelled."""
    compared = [compare(text, transcript) for text in texts]
    best = min(compared, key=lambda each: (each.error_rate, each.longest_error_run))
    errors = round(best.error_rate * len(_words(texts[0])))
    fault = ""
    if best.longest_error_run > MAX_ERROR_RUN or (best.error_rate > MAX_WORD_ERROR_RATE and errors > 1):
        detail = f"{best.error_rate:.0%} of its words wrong, {best.longest_error_run} in a row"
        fault = f'was recognized as "{transcript}" ({detail})'
    return replace(take, transcription=best, fault=take.fault or fault)


def compare(text: str, transcript: str) -> Transcription:
    """Counts word errors, ignoring case, punctuation and how numbers are written."""
    import jiwer

    expected, actual = _words(text), _words(transcript)
    if not expected:
        return Transcription(transcript, 0.0, 0)
    aligned = jiwer.process_words(" ".join(expected), " ".join(actual))
    run = longest_run = 0
    for chunk in aligned.alignments[0]:
        words = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        run = 0 if chunk.type == "equal" else run + words  # missing and added words count too
        longest_run = max(longest_run, run)
    return Transcription(transcript, float(aligned.wer), longest_run)


def _words(text: str) -> list[str]:
    return [word for word in str(_normalizer()(text)).split() if any(char.isalnum() for char in word)]


@cache
def _normalizer() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
