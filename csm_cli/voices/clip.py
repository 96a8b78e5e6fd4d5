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
_TRIM_DB = 40.0  # below the peak level: not speech
_CLIPPED_LEVEL, _CLIPPED_SHARE = 0.98, 1e-3
_LETTERS_PER_SECOND = (3.0, 30.0)


def prepare_clip(audio: Audio, text: str) -> tuple[Audio, list[str]]:
    """The speech of a recording without the silence around it, and warnings for the user. text: its transcript.

    Raises:
        AudioUnreadable: silence, or less than a second of speech.
    """
    from csm_cli.audio.clip_checks import is_silent

    if is_silent(audio):
        raise AudioUnreadable("the clip holds only silence; record it louder")
    levels = _levels(audio)
    (speech,) = (levels > levels.max() * 10 ** (-_TRIM_DB / 20)).nonzero()
    first, last = int(speech[0]) * _HOP, min(len(audio.samples), (int(speech[-1]) + 1) * _HOP)
    margin = round(_MARGIN_SECONDS * audio.rate)
    trimmed = Audio(audio.samples[max(0, first - margin) : last + margin], audio.rate, audio.notes)
    if trimmed.duration < MIN_SECONDS:
        raise AudioUnreadable(f"the clip holds {trimmed.duration:.1f} s of speech; 5 to 15 s make a good voice")
    return trimmed, list(_warnings(trimmed, text))


def _levels(audio: Audio) -> NDArray[np.float32]:
    """RMS levels around every `_HOP`-th sample, as of librosa.feature.rms, which needs a folder for numba's cache."""
    import numpy as np

    padded = np.pad(audio.samples, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    levels: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", windows, windows) / np.float32(_WINDOW))
    return levels


def _warnings(audio: Audio, text: str) -> Iterator[str]:
    import numpy as np

    from csm_cli.audio.clip_checks import clip_warnings

    seconds = audio.duration
    if seconds < GOOD_SECONDS[0]:
        yield f"{seconds:.1f} s of speech is short; 5 to 15 s make a better voice"
    if seconds > LONG_SECONDS:
        yield f"{seconds:.1f} s of speech is long and takes context from every turn; 5 to 15 s are enough"
    if np.mean(np.abs(audio.samples) > _CLIPPED_LEVEL) > _CLIPPED_SHARE:
        yield "the clip is clipped; record it with less gain"
    yield from clip_warnings(audio).values()
    letters = sum(char.isalnum() for char in text)
    if not _LETTERS_PER_SECOND[0] <= letters / seconds <= _LETTERS_PER_SECOND[1]:
        yield f"{letters} letters in {seconds:.1f} s is an unusual pace; is the text the whole transcript of the clip?"
