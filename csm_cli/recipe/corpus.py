"""Stage "corpus": synthetic speech from espeak-ng, in shards of utterances with text, voice, audio and word times.

A shard is `NNN.npy` (int16 samples at 24 kHz, one after another) and `NNN.json` (its `CorpusUtterance`s). It depends
only on the seed and its number, so an interrupted run resumes.
"""

from __future__ import annotations

import ctypes
import json
import logging
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from csm_cli.recipe.sentences import training_texts, training_words
from csm_cli.storage.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from csm_cli.recipe.plan import CorpusPlan

RATE = 24_000
FRAME = 1920
_TAIL = RATE // 10
_SHARD_SECONDS = 1800.0
_LOG = logging.getLogger(__name__)
_SYNCHRONOUS = 2
_UTF8 = 1
_CHARACTER_POSITION = 1
_RATE_PARAMETER, _PITCH_PARAMETER, _RANGE_PARAMETER = 1, 3, 4
_EVENT_END, _EVENT_WORD = 0, 1


@dataclass(frozen=True)
class EspeakVoice:
    """An espeak-ng voice: its name, words per minute, pitch and pitch range (0 to 100, default 50)."""

    name: str
    rate: int = 175
    pitch: int = 50
    range: int = 50


@dataclass(frozen=True)
class EspeakSpeech:
    """int16 samples [N] at `rate` Hz, and word starts as (character of the text, sample) pairs."""

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
    """libespeak-ng in this process. The library has global state: one instance per process.

    Raises OSError where libespeak-ng is not installed. C interface: espeak-ng's `speak_lib.h`.
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
        """Synthesizes `text`; raises ValueError where espeak-ng has no such voice."""
        if voice != self._voice:
            if self._lib.espeak_SetVoiceByName(voice.name.encode()) != 0:
                raise ValueError(f"espeak-ng has no voice named {voice.name!r}")
            self._lib.espeak_SetParameter(_RATE_PARAMETER, voice.rate, 0)
            self._lib.espeak_SetParameter(_PITCH_PARAMETER, voice.pitch, 0)
            self._lib.espeak_SetParameter(_RANGE_PARAMETER, voice.range, 0)
            self._voice = voice
        self._chunks, self._words = [], []
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, _CHARACTER_POSITION, 0, _UTF8, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return EspeakSpeech(samples, self.rate, tuple(self._words))

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).astype(np.int16))
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_WORD:
                self._words.append((events[index].text_position - 1, events[index].sample))
            index += 1
        return 0


VOICES = (
    EspeakVoice("en-us", 175, pitch=60, range=0),  # 100 Hz
    EspeakVoice("en-us+f3", 170, pitch=61, range=0),  # 200 Hz
    EspeakVoice("gmw/en", 165, pitch=80, range=0),  # 125 Hz
    EspeakVoice("gmw/en+f4", 180, pitch=79, range=0),  # 225 Hz
    EspeakVoice("en-us+m3", 185, pitch=94, range=0),  # 150 Hz
    EspeakVoice("en-us+f2", 160, pitch=84, range=0),  # 250 Hz
    EspeakVoice("en-us+m7", 155, pitch=32, range=0),  # 75 Hz
    EspeakVoice("gmw/en+f1", 190, pitch=58, range=0),  # 175 Hz
)
"""Speakers 0 and 1 have voices 0 and 1 without context.

All are monotone, at a pitch near a multiple of the codec's 25 Hz frame rate: the codes do not hold the phase of the
pitch, and frames join without a break only where each holds a whole number of periods.
"""

PRACTICE_VOICES = (EspeakVoice("en-us", 165, pitch=45), EspeakVoice("en-us+f3", 170, pitch=55))
"""With intonation; beside a natural teacher's voices."""


@dataclass(frozen=True)
class CorpusUtterance:
    """Text, index of the voice in its corpus, length in frames, and when each part of the text is spoken.

    words: (byte of the text, frame) anchors in order. phonemes: four per frame, "" where the teacher gives none.
    """

    text: str
    voice: int
    frames: int
    words: tuple[tuple[int, float], ...]
    phonemes: str = ""


def render_voice(espeak: Espeak, text: str, voice: int) -> tuple[CorpusUtterance, NDArray[np.int16]]:
    """A text in one of `VOICES`; samples as of `render_espeak`."""
    samples, words = render_espeak(espeak, text, VOICES[voice])
    return CorpusUtterance(text, voice, len(samples) // FRAME, words), samples


def render_espeak(
    espeak: Espeak, text: str, voice: EspeakVoice
) -> tuple[NDArray[np.int16], tuple[tuple[int, float], ...]]:
    """Samples int16 [frames * 1920], padded with at least 0.1 s of silence to whole frames; and word starts."""
    import soxr

    speech = espeak.speak(text, voice)
    samples = soxr.resample(speech.samples, speech.rate, RATE)
    frames = -(-(len(samples) + _TAIL) // FRAME)
    scale = RATE / speech.rate / FRAME
    words = tuple((char, round(sample * scale, 2)) for char, sample in speech.words)
    return np.pad(samples, (0, frames * FRAME - len(samples))), words


def write_corpus(folder: Path, plan: CorpusPlan, voices: Sequence[EspeakVoice] = VOICES, first_voice: int = 0) -> None:
    """Writes the missing shards of about `plan.hours` of speech. first_voice: the number of the first of `voices`."""
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    for index in range(shard_count(plan)):
        if not (folder / f"{index:03}.json").exists():
            _write_shard(folder / f"{index:03}", espeak, plan, index, voices, first_voice)
            _LOG.info("%s: shard %d of %.1f hours written", folder.name, index, plan.hours)


def shard_count(plan: CorpusPlan) -> int:
    """Number of shards of the planned hours."""
    return max(1, round(plan.hours * 3600 / _SHARD_SECONDS))


def load_shard(stem: Path) -> tuple[list[CorpusUtterance], NDArray[np.int16]]:
    """The utterances of a shard and its samples [N] (memory-mapped)."""
    records = json.loads(stem.with_suffix(".json").read_text())
    samples = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    utterances = [CorpusUtterance(**{**record, "words": tuple(map(tuple, record["words"]))}) for record in records]
    return utterances, samples


def shard_stems(folder: Path) -> list[Path]:
    """Paths without suffix of the finished shards, in order."""
    return sorted(path.with_suffix("") for path in folder.glob("[0-9]*.json"))


def _write_shard(
    stem: Path, espeak: Espeak, plan: CorpusPlan, index: int, voices: Sequence[EspeakVoice], first_voice: int
) -> None:
    seed = plan.seed * 1000 + index
    rng = random.Random(seed)
    texts = training_texts(seed, training_words())
    max_frames = min(_SHARD_SECONDS, plan.hours * 3600) * RATE / FRAME
    utterances, chunks, frames = [], [], 0
    while frames < max_frames:
        voice = rng.randrange(2) if rng.random() < plan.fixed_share else rng.randrange(len(voices))
        text = next(texts)
        samples, words = render_espeak(espeak, text, voices[voice])
        utterance = CorpusUtterance(text, first_voice + voice, len(samples) // FRAME, words)
        utterances.append(utterance)
        chunks.append(samples)
        frames += utterance.frames
    np.save(stem.with_suffix(".npy"), np.concatenate(chunks))
    text = json.dumps([asdict(utterance) for utterance in utterances])
    write_atomically(stem.with_suffix(".json"), text.encode())
