"""Speech from libespeak-ng, in process, with the time at which every word starts.

Source of the C interface: espeak-ng's `speak_lib.h`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_SYNCHRONOUS = 2
_UTF8 = 1
_CHARACTER_POSITION = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_END, _EVENT_WORD = 0, 1


@dataclass(frozen=True)
class EspeakVoice:
    """One speaking voice: espeak-ng's voice name, words a minute, pitch and its range (0 to 100, 50 the defaults)."""

    name: str
    rate: int = 175
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class EspeakSpeech:
    """int16 samples [N] at `rate` Hz, and the words' starts as (character of the text, sample) pairs."""

    samples: NDArray[np.int16]
    rate: int
    words: tuple[tuple[int, int], ...]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """The synthesizer. The library keeps global state: one instance a process.

    Raises OSError when libespeak-ng is not installed.
    """

    def __init__(self, library: str = "libespeak-ng.so.1") -> None:
        self._lib = ctypes.CDLL(library)
        self.rate = int(self._lib.espeak_Initialize(_SYNCHRONOUS, 0, None, 0))
        if self.rate <= 0:
            raise OSError("espeak-ng could not be initialized: is its data directory installed?")
        self._chunks: list[NDArray[np.int16]] = []
        self._words: list[tuple[int, int]] = []
        self._voice: EspeakVoice | None = None
        self._callback = _CALLBACK(self._collect)
        self._lib.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: EspeakVoice) -> EspeakSpeech:
        """Say `text`; raises ValueError when espeak-ng does not know the voice."""
        self._select(voice)
        self._chunks, self._words = [], []
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, _CHARACTER_POSITION, 0, _UTF8, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return EspeakSpeech(samples, self.rate, tuple(self._words))

    def _select(self, voice: EspeakVoice) -> None:
        if voice == self._voice:
            return
        if self._lib.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice named {voice.name!r}")
        self._lib.espeak_SetParameter(_RATE, voice.rate, 0)
        self._lib.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._lib.espeak_SetParameter(_RANGE, voice.range, 0)
        self._voice = voice

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.int16))
        self._words += [(e.text_position - 1, e.sample) for e in _until_end(events) if e.type == _EVENT_WORD]
        return 0


def _until_end(events: ctypes._Pointer[_Event]) -> Iterator[_Event]:
    index = 0
    while events[index].type != _EVENT_END:
        yield events[index]
        index += 1
