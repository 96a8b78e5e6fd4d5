"""The spoken corpus: shards of utterances, each with text, voice, audio and word timings.

A shard is `NNN.npy` (all samples, int16 at 24 kHz, one after another) and `NNN.json` (a list of `CorpusUtterance`s).
It depends on the seed and its number alone, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from csm_cli.recipe.espeak import Espeak, EspeakVoice
from csm_cli.recipe.sentences import training_texts, training_words
from csm_cli.storage.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from csm_cli.recipe.plan import CorpusPlan

RATE = 24_000
FRAME = 1920
_TAIL = RATE // 10
_SHARD_SECONDS = 1800.0
_LOG = logging.getLogger(__name__)

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
"""Voices 0 and 1 are what speakers 0 and 1 sound like without context.

All speak in one tone, near a multiple of the codec's 25 Hz: its decoder is not told where a voice's pulses lie, and
joins frames without a break only where each holds a whole number of periods. Voices with intonation came out of it as
whispers, after hours of training.
"""


@dataclass(frozen=True)
class CorpusUtterance:
    """What one take says, with which of `VOICES`, its length in frames, and (character, frame) word starts."""

    text: str
    voice: int
    frames: int
    words: tuple[tuple[int, float], ...]


def render_voice(espeak: Espeak, text: str, voice: int) -> tuple[CorpusUtterance, NDArray[np.int16]]:
    """A text in one of `VOICES`, as `spoken` has it."""
    samples, words = render_espeak(espeak, text, VOICES[voice])
    return CorpusUtterance(text, voice, len(samples) // FRAME, words), samples


def render_espeak(
    espeak: Espeak, text: str, voice: EspeakVoice
) -> tuple[NDArray[np.int16], tuple[tuple[int, float], ...]]:
    """A text at 24 kHz, padded with at least 0.1 s of silence to whole frames [frames * 1920], and its word starts."""
    import soxr

    speech = espeak.speak(text, voice)
    samples = soxr.resample(speech.samples, speech.rate, RATE)
    frames = -(-(len(samples) + _TAIL) // FRAME)
    scale = RATE / speech.rate / FRAME
    words = tuple((char, round(sample * scale, 2)) for char, sample in speech.words)
    return np.pad(samples, (0, frames * FRAME - len(samples))), words


def make_corpus(folder: Path, plan: CorpusPlan) -> None:
    """Write the shards of about `plan.hours` of speech that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    for index in range(shard_count(plan)):
        if not (folder / f"{index:03}.json").exists():
            _make_shard(folder / f"{index:03}", espeak, plan, index)
            _LOG.info("corpus: shard %d of %.1f hours written", index, plan.hours)


def shard_count(plan: CorpusPlan) -> int:
    """How many shards the planned hours are."""
    return max(1, round(plan.hours * 3600 / _SHARD_SECONDS))


def load_shard(stem: Path) -> tuple[list[CorpusUtterance], NDArray[np.int16]]:
    """The utterances of a shard and its samples [N] (memory-mapped)."""
    rows = json.loads(stem.with_suffix(".json").read_text())
    samples = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    return [CorpusUtterance(r["text"], r["voice"], r["frames"], tuple(map(tuple, r["words"]))) for r in rows], samples


def shard_stems(folder: Path) -> list[Path]:
    """The finished shards of a corpus folder, in order."""
    return sorted(path.with_suffix("") for path in folder.glob("[0-9]*.json"))


def _make_shard(stem: Path, espeak: Espeak, plan: CorpusPlan, index: int) -> None:
    seed = plan.seed * 1000 + index
    choice = random.Random(seed)
    texts = training_texts(seed, training_words())
    wanted = min(_SHARD_SECONDS, plan.hours * 3600) * RATE / FRAME
    utterances, chunks, frames = [], [], 0
    while frames < wanted:
        voice = choice.randrange(2) if choice.random() < plan.fixed_share else choice.randrange(len(VOICES))
        utterance, samples = render_voice(espeak, next(texts), voice)
        utterances.append(utterance)
        chunks.append(samples)
        frames += utterance.frames
    np.save(stem.with_suffix(".npy"), np.concatenate(chunks))
    text = json.dumps([asdict(utterance) for utterance in utterances])
    write_atomically(stem.with_suffix(".json"), text.encode())
