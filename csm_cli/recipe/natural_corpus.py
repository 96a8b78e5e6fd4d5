"""The corpus of natural voices: a teacher's speech as shards of `corpus.py`'s format, with phonemes and text positions.

A shard holds about five minutes of one voice. Its texts depend on the seed and its number alone, so an interrupted run
goes on where it stopped. The first shard of every voice is held out: neither codec nor model is trained on it.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from csm_cli.recipe.alignment import align_words
from csm_cli.recipe.corpus import FRAME, RATE, CorpusUtterance, load_shard, shard_stems
from csm_cli.recipe.dialogue_sentences import teacher_texts
from csm_cli.recipe.teacher import TeacherRequest, read_recorded, recorded_shards
from csm_cli.storage.files import atomic_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from csm_cli.recipe.plan import TeacherPlan
    from csm_cli.recipe.teacher import Teacher, TeacherSpeech

UNIT = 600
"""Samples per unit of a teacher's durations: 25 ms."""

COLUMNS = 4
"""Phonemes per codec frame of 80 ms."""

_LOG = logging.getLogger(__name__)
_TEXTS_PER_SHARD = 100
_SHARD_HOURS = 300 / 3600
_SPEEDS = (0.92, 1.1)
_LEAD, _TAIL = 3, 7  # units of silence kept before and after speech
_SILENCE = 0.01  # of the utterance's loudest unit, by RMS
_STRESS = "ˈˌ"


def write_natural_corpus(folder: Path, plan: TeacherPlan, teacher: Teacher) -> None:
    """Writes the shards that are not there yet: recorded ones first, then what the teacher speaks."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = [shard for source in plan.recorded for shard in recorded_shards(source)]
    for index, shard in enumerate(recorded):
        if not (folder / f"{index:03}.json").exists():
            write_shard(folder / f"{index:03}", read_recorded(shard), plan)
    for index, (voice, number) in enumerate(spoken_shards(plan), start=len(recorded)):
        if not (folder / f"{index:03}.json").exists():
            write_shard(folder / f"{index:03}", teacher.speak(shard_requests(voice, plan.seed, number)), plan)
            _LOG.info("corpus: shard %d, %s, written", index, voice)


def spoken_shards(plan: TeacherPlan) -> list[tuple[str, int]]:
    """(voice, number) of every shard the teacher speaks; voices take turns, so that a part of a corpus has all."""
    counts = {voice: max(1, round(hours / _SHARD_HOURS)) for voice, hours in plan.voices.items() if hours}
    rounds = ([(voice, number) for voice, count in counts.items() if number < count] for number in itertools.count())
    return list(itertools.chain.from_iterable(itertools.takewhile(bool, rounds)))


def shard_requests(voice: str, seed: int, number: int) -> list[TeacherRequest]:
    """The texts of a voice's shard, and at which speeds."""
    key = f"{voice}/{seed}/{number}"
    choice = random.Random(key)
    texts = itertools.islice(teacher_texts(choice.randrange(2**31)), _TEXTS_PER_SHARD)
    return [TeacherRequest(text, voice, round(choice.uniform(*_SPEEDS), 2)) for text in texts]


def write_shard(stem: Path, speeches: Iterable[TeacherSpeech], plan: TeacherPlan) -> None:
    """Writes a shard of utterances; one in a voice that the plan does not name is left out."""
    names = list(plan.voices)
    made = [cut_utterance(each, names.index(each.request.voice)) for each in speeches if each.request.voice in names]
    with atomic_file(stem.with_suffix(".npy")) as file:
        np.save(file, np.concatenate([samples for _, samples in made]))
    rows = json.dumps([asdict(utterance) for utterance, _ in made], ensure_ascii=False)
    write_atomically(stem.with_suffix(".json"), rows.encode())


def cut_utterance(speech: TeacherSpeech, voice: int) -> tuple[CorpusUtterance, NDArray[np.int16]]:
    """An utterance with little silence around it, padded to whole frames: int16 [frames * 1920]."""
    units = speech.samples[: len(speech.samples) // UNIT * UNIT].reshape(-1, UNIT)
    level = np.sqrt((units**2).mean(axis=1))
    loud = np.flatnonzero(level > _SILENCE * level.max())
    first, last = max(0, int(loud[0]) - _LEAD), min(len(units), int(loud[-1]) + 1 + _TAIL)
    samples = np.clip(np.rint(units[first:last].ravel() * 32767), -32768, 32767).astype(np.int16)
    frames = -(-len(samples) // FRAME)
    anchors = align_words(speech.request.text, speech.phonemes, speech.durations)
    words = tuple((byte, round(max(0.0, (unit - first) * UNIT / FRAME), 2)) for byte, unit in anchors)
    phonemes = phonemes_by_unit(speech.phonemes, speech.durations)[first:last]
    middles = (np.arange(frames * COLUMNS) + 0.5) * FRAME / COLUMNS / UNIT
    columns = "".join(phonemes[int(at)] if at < len(phonemes) else " " for at in middles)
    utterance = CorpusUtterance(speech.request.text, voice, frames, words, columns)
    return utterance, np.pad(samples, (0, frames * FRAME - len(samples)))


def phonemes_by_unit(phonemes: str, durations: tuple[int, ...]) -> str:
    """The phoneme heard in each 25 ms; a stress mark's time belongs to the phoneme after it, pads are spaces."""
    symbols = [" ", *phonemes, " "]
    for index in range(len(symbols) - 2, 0, -1):
        if symbols[index] in _STRESS:
            symbols[index] = symbols[index + 1]
    return "".join(symbol * duration for symbol, duration in zip(symbols, durations, strict=True))


def training_stems(folder: Path) -> list[Path]:
    """The shards that are trained on."""
    held_out = set(held_out_stems(folder))
    return [stem for stem in shard_stems(folder) if stem not in held_out]


def held_out_stems(folder: Path) -> list[Path]:
    """The first shard of every voice that has more than one; none of shards in which voices are mixed."""
    by_voice: dict[int, list[Path]] = {}
    for stem in shard_stems(folder):
        voices = {utterance.voice for utterance in load_shard(stem)[0]}
        if len(voices) == 1:
            by_voice.setdefault(voices.pop(), []).append(stem)
    return [stems[0] for stems in by_voice.values() if len(stems) > 1]


def corpus_hours(folder: Path) -> float:
    """Hours of speech in the finished shards."""
    return sum(len(load_shard(stem)[1]) for stem in shard_stems(folder)) / RATE / 3600
