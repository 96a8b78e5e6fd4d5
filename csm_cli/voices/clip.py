"""A recording made ready to be a voice: silence trimmed, and what might be wrong with it said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csm_cli.audio.io import Audio
from csm_cli.errors import AudioUnreadable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHORT, GOOD, LONG = 1.0, (5.0, 15.0), 30.0  # seconds
_MARGIN = 0.1  # seconds kept around the speech
_WINDOW, _HOP = 1024, 256  # samples of a level
_SILENT = 1e-3  # of full scale: -60 dBFS
_TRIM_DB = 40.0  # so much below the loudest is not speech
_NOISY_DB = 25.0  # speech over what is between words
_CLIPPED, _CLIPPED_SHARE = 0.98, 1e-3
_LETTERS_PER_SECOND = (3.0, 30.0)


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """Speech without the silence around it, and warnings for who gave it."""

    audio: Audio
    warnings: tuple[str, ...]


def prepare_clip(audio: Audio, text: str) -> PreparedClip:
    """A clip of the recording `audio`, which says `text`.

    Raises:
        AudioUnreadable: silence, or less than a second of speech.
    """
    import librosa

    if _levels(audio).max() < _SILENT:
        raise AudioUnreadable("the clip holds only silence; record it louder")
    _, (first, last) = librosa.effects.trim(audio.samples, top_db=_TRIM_DB, frame_length=_WINDOW, hop_length=_HOP)
    margin = round(_MARGIN * audio.rate)
    kept = Audio(audio.samples[max(0, first - margin) : last + margin], audio.rate)
    if kept.duration < SHORT:
        raise AudioUnreadable(f"the clip holds {kept.duration:.1f} s of speech; 5 to 15 s make a good voice")
    return PreparedClip(kept, tuple(_troubles(kept, text)))


def _levels(audio: Audio) -> NDArray[np.float32]:
    import librosa

    levels: NDArray[np.float32] = librosa.feature.rms(y=audio.samples, frame_length=_WINDOW, hop_length=_HOP)[0]
    return levels


def _troubles(audio: Audio, text: str) -> Iterator[str]:
    import numpy as np

    seconds = audio.duration
    if seconds < GOOD[0]:
        yield f"{seconds:.1f} s of speech is short; 5 to 15 s make a better voice"
    if seconds > LONG:
        yield f"{seconds:.1f} s of speech is long and takes room from every turn; 5 to 15 s are enough"
    if np.mean(np.abs(audio.samples) > _CLIPPED) > _CLIPPED_SHARE:
        yield "the clip is clipped; record it with less gain"
    quiet, loud = np.percentile(_levels(audio), (5, 90))
    if loud < 10 ** (_NOISY_DB / 20) * quiet:
        yield f"the clip is noisy: speech is {20 * np.log10(loud / quiet):.0f} dB over what is between words"
    letters = sum(char.isalnum() for char in text)
    if not _LETTERS_PER_SECOND[0] <= letters / seconds <= _LETTERS_PER_SECOND[1]:
        yield f"{letters} letters in {seconds:.1f} s is no usual pace; is the text what the clip says, all of it?"
