"""The corpus of a natural teacher, which is faked here: tones for letters, known durations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csm_cli.recipe.codec_crops import PHONEMES, CorpusCrops
from csm_cli.recipe.corpus import FRAME, load_shard, shard_stems
from csm_cli.recipe.natural_corpus import (
    COLUMNS,
    UNIT,
    cut_utterance,
    held_out_stems,
    shard_requests,
    spoken_shards,
    training_stems,
    write_natural_corpus,
)
from csm_cli.recipe.plan import TeacherPlan
from csm_cli.recipe.teacher import TeacherRequest, TeacherSpeech


class ToneTeacher:
    """Every letter is a tone of 100 ms, between half a second of silence before and after."""

    def __init__(self) -> None:
        self.calls = 0

    def speak(self, requests: Sequence[TeacherRequest]) -> Iterator[TeacherSpeech]:
        self.calls += 1
        for request in requests[:5]:
            phonemes = "".join(char for char in request.text.lower() if char in "abdefhiklmnop .,?")
            durations = (20, *[4] * len(phonemes), 20)
            tones = [_tone(char) for char in phonemes]
            silence = np.zeros(20 * UNIT, np.float32)
            yield TeacherSpeech(request, np.concatenate([silence, *tones, silence]), phonemes, durations)


def _tone(char: str) -> np.ndarray:
    level = 0.0 if char in " .,?" else 0.3
    return (level * np.sin(np.arange(4 * UNIT) * (0.02 + 0.001 * ord(char)))).astype(np.float32)


@pytest.fixture
def plan(tmp_path: Path) -> TeacherPlan:
    return TeacherPlan(tools=tmp_path, voices={"one": 0.17, "two": 0.17})


def test_voices_take_turns() -> None:
    plan = TeacherPlan(tools=Path(), voices={"one": 0.25, "two": 0.1, "unused": 0.0})
    assert spoken_shards(plan) == [("one", 0), ("two", 0), ("one", 1), ("one", 2)]


@pytest.mark.espeak  # the word list
def test_a_shards_texts_depend_on_its_number_alone() -> None:
    first, again, other = (shard_requests("one", 1, number) for number in (0, 0, 1))
    assert first == again != other
    assert max(len(request.text) for request in first) <= 150
    assert any("?" in request.text for request in first)
    assert any(len(request.text.split()) < 4 for request in first)


@pytest.mark.espeak
def test_shards_are_made_once_and_the_first_of_a_voice_is_held_out(tmp_path: Path, plan: TeacherPlan) -> None:
    teacher = ToneTeacher()
    for _ in range(2):
        write_natural_corpus(tmp_path / "corpus", plan, teacher)
    stems = shard_stems(tmp_path / "corpus")
    assert teacher.calls == len(stems) == 4
    assert held_out_stems(tmp_path / "corpus") == stems[:2]
    assert training_stems(tmp_path / "corpus") == stems[2:]
    utterances, samples = load_shard(stems[1])
    assert {utterance.voice for utterance in utterances} == {1}
    assert sum(utterance.frames for utterance in utterances) * FRAME == len(samples)


def test_silence_is_cut_and_everything_else_keeps_its_place() -> None:
    (speech,) = ToneTeacher().speak([TeacherRequest("Man bed.", "one")])
    utterance, samples = cut_utterance(speech, 0)
    assert len(samples) == utterance.frames * FRAME == len(utterance.phonemes) * FRAME // COLUMNS
    loud = np.flatnonzero(np.abs(samples) > 100)
    assert loud[0] == pytest.approx(3 * UNIT, abs=UNIT)
    assert utterance.words[0] == (0, pytest.approx(loud[0] / FRAME, abs=0.05))
    bed = utterance.words[2]
    assert bed[0] == 4 and bed[1] == pytest.approx((loud[0] + 16 * UNIT) / FRAME, abs=0.05)
    assert utterance.words[-1][0] == 8
    assert utterance.phonemes[:2].strip() == "" and "mmmmm" in utterance.phonemes
    assert set(utterance.phonemes) == set("man bed.")


def test_recorded_shards_come_first(tmp_path: Path, plan: TeacherPlan) -> None:
    (speech,) = ToneTeacher().speak([TeacherRequest("Pile of lime.", "two")])
    source = tmp_path / "recorded"
    source.mkdir()
    soundfile.write(source / "x.flac", speech.samples, 24_000)
    row = {"text": "Pile of lime.", "voice": "two", "speed": 1.0, "phonemes": speech.phonemes}
    row |= {"durations": speech.durations, "start": 0, "end": len(speech.samples)}
    (source / "x.jsonl").write_text(json.dumps(row) + "\n")
    recorded = TeacherPlan(tools=tmp_path, voices={"one": 0.0, "two": 0.0}, recorded=(source,))
    write_natural_corpus(tmp_path / "corpus", recorded, ToneTeacher())
    (stem,) = shard_stems(tmp_path / "corpus")
    utterances, _ = load_shard(stem)
    assert [(each.text, each.voice) for each in utterances] == [("Pile of lime.", 1)]


@pytest.mark.espeak
def test_crops_carry_the_phonemes_of_their_samples(tmp_path: Path, plan: TeacherPlan) -> None:
    write_natural_corpus(tmp_path / "corpus", plan, ToneTeacher())
    crops = CorpusCrops(shard_stems(tmp_path / "corpus"), frames=5, seed=0)
    samples, classes = crops.batch(8)
    assert samples.shape == (8, 5 * FRAME) and classes.shape == (8, COLUMNS, 5)
    level = samples.view(8, 5, COLUMNS, -1)[..., 180:300].abs().amax(-1).transpose(1, 2)
    silent = torch.isin(classes, torch.tensor([PHONEMES.index(char) for char in " .,?"]))
    assert (level[silent] < 0.05).float().mean() > 0.9 and (level[~silent] > 0.1).float().mean() > 0.9
