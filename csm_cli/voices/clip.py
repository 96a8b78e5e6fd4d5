"""Prepare a recording to be a voice: trim the silence around speech, and warn about what makes a poor voice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from csm_cli.audio.io import Audio
from csm_cli.errors import AudioUnreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_SECONDS, GOOD_SECONDS, LONG_SECONDS = 1.0, (5.0, 15.0), 30.0
_MARGIN_SECONDS = 0.1  # left around the speech
_WINDOW, _HOP = 1024, 256  # samples of an RMS level
_SILENT_LEVEL = 1e-3  # of full scale: -60 dBFS
_TRIM_DB = 40.0  # below the peak level: not speech
_NOISY_DB = 25.0  # least distance of speech over the pauses between words
_CLIPPED_LEVEL, _CLIPPED_SHARE = 0.98, 1e-3
_LETTERS_PER_SECOND = (3.0, 30.0)


def prepare_clip(audio: Audio, text: str) -> tuple[Audio, list[str]]:
    """The speech of a recording without the silence around it, and warnings for the user. text: its transcript.

    Raises:
        AudioUnreadable: silence, or less than a second of speech.
    """
    import librosa

    if _levels(audio).max() < _SILENT_LEVEL:
        raise AudioUnreadable("the clip holds only silence; record it louder")
    _, (first, last) = librosa.effects.trim(audio.samples, top_db=_TRIM_DB, frame_length=_WINDOW, hop_length=_HOP)
    margin = round(_MARGIN_SECONDS * audio.rate)
    trimmed = Audio(audio.samples[max(0, first - margin) : last + margin], audio.rate)
    if trimmed.duration < MIN_SECONDS:
        raise AudioUnreadable(f"the clip holds {trimmed.duration:.1f} s of speech; 5 to 15 s make a good voice")
    return trimmed, list(_warnings(trimmed, text))


def _levels(audio: Audio) -> NDArray[np.float32]:
    import librosa

    levels: NDArray[np.float32] = librosa.feature.rms(y=audio.samples, frame_length=_WINDOW, hop_length=_HOP)[0]
    return levels


def _warnings(audio: Audio, text: str) -> Iterator[str]:
    import numpy as np

    seconds = audio.duration
    if seconds < GOOD_SECONDS[0]:
        yield f"{seconds:.1f} s of speech is short; 5 to 15 s make a better voice"
    if seconds > LONG_SECONDS:
        yield f"{seconds:.1f} s of speech is long and takes context from every turn; 5 to 15 s are enough"
    if np.mean(np.abs(audio.samples) > _CLIPPED_LEVEL) > _CLIPPED_SHARE:
        yield "the clip is clipped; record it with less gain"
    quiet, loud = np.percentile(_levels(audio), (5, 90))
    if loud < 10 ** (_NOISY_DB / 20) * quiet:
        yield f"the clip is noisy: speech is {20 * np.log10(loud / quiet):.0f} dB above the pauses between words"
    letters = sum(char.isalnum() for char in text)
    if not _LETTERS_PER_SECOND[0] <= letters / seconds <= _LETTERS_PER_SECOND[1]:
        yield f"{letters} letters in {seconds:.1f} s is an unusual pace; is the text the whole transcript of the clip?"
