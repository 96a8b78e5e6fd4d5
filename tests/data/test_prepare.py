"""Datasets encoded to stores: codes, splitting, held-out share, and resuming after any interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from helpers.datasets import chunks
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.audio.io import read_audio
from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.data.dataset import DroppedClip, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.prepare import (
    Encoder,
    EncodingConfig,
    Preparation,
    PrepareProgress,
    codec_digest,
    is_held_out,
    split_turns,
)
from csm_cli.data.store import CodedTurn, Example, open_store
from csm_cli.errors import InputError, NothingToLearn, OutputFailed, UsageError
from csm_cli.models.mimi import Codec
from csm_cli.types import Recording

CLIPS = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LJSpeech of seven clips, the fourth without text."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "wavs").mkdir()
    for number in range(CLIPS):
        noise = np.random.default_rng(number).normal(0, 0.1, 6000 + 500 * number)
        soundfile.write(folder / "wavs" / f"{number}.wav", noise, 16000)
    rows = [f"{number}|{'' if number == 3 else 'Words.'}\n" for number in range(CLIPS)]
    (folder / "metadata.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def config(tiny_checkpoint: Path) -> EncodingConfig:
    return EncodingConfig(str(tiny_checkpoint), device="cpu", held_out=0.3)


def run(dataset: Path, folder: Path, config: EncodingConfig, workers: int = 1) -> list[PrepareProgress]:
    return list(Preparation(folder, config, workers).run(chunks(dataset), SpeakerNumbers()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_dataset_becomes_a_store(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    steps = run(dataset, tmp_path / "store", config)
    train, out = open_store(tmp_path / "store"), open_store(tmp_path / "store", held_out=True)
    assert len(steps) == 4 and sum(step.examples for step in steps) == len(train) + len(out) == CLIPS - 1
    assert [clip.reason for step in steps for clip in step.result.dropped] == ["no text"]
    names = {example.id.rpartition("/")[2] for store in (train, out) for example in store}
    assert names == {"0", "1", "2", "4", "5", "6"}
    assert train.info["max_positions"] == 512 and train.info["held_out_share"] == 0.3


def test_finished_chunks_are_not_encoded_again(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    first = run(dataset, tmp_path / "store", config)
    made = contents(tmp_path / "store")
    again = run(dataset, tmp_path / "store", config)
    assert [step.resumed for step in first + again] == [False] * 4 + [True] * 4
    assert [step.result for step in again] == [step.result for step in first]
    assert contents(tmp_path / "store") == made


def test_only_changed_chunks_are_encoded_again(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    copy = tmp_path / dataset.name
    (copy / "wavs").mkdir(parents=True)
    for path in (dataset / "wavs").iterdir():
        os.link(path, copy / "wavs" / path.name)
    (copy / "metadata.csv").write_text((dataset / "metadata.csv").read_text().replace("5|Words.", "5|Other."))
    run(dataset, tmp_path / "store", config)
    steps = run(copy, tmp_path / "store", config)
    assert [step.resumed for step in steps] == [True, True, False, True]


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_run_resumes(dataset: Path, tmp_path: Path, config: EncodingConfig, after: int) -> None:
    run(dataset, tmp_path / "whole", config)
    steps = Preparation(tmp_path / "store", config).run(chunks(dataset), SpeakerNumbers())
    for _ in range(after):
        next(steps)
    steps.close()
    with pytest.raises(InputError, match="run csm data prepare to the end"):
        open_store(tmp_path / "store")
    rest = run(dataset, tmp_path / "store", config)
    assert [step.resumed for step in rest] == [True] * after + [False] * (4 - after)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_workers_make_the_same_store(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    one, two = run(dataset, tmp_path / "one", config), run(dataset, tmp_path / "two", config, workers=2)
    assert one == two and contents(tmp_path / "one") == contents(tmp_path / "two")


def test_full_disk_leaves_finished_chunks(
    dataset: Path, tmp_path: Path, config: EncodingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputFailed(f"{path}: could not be written (No space left on device); nothing was left behind")

    steps = Preparation(tmp_path / "store", config).run(chunks(dataset), SpeakerNumbers())
    next(steps)
    monkeypatch.setattr("csm_cli.data.store.write_atomically", full)
    with pytest.raises(OutputFailed, match="No space left"):
        next(steps)
    monkeypatch.undo()
    assert [step.resumed for step in run(dataset, tmp_path / "store", config)] == [True, False, False, False]


def test_damaged_shard_is_encoded_again(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    run(dataset, tmp_path / "store", config)
    made = contents(tmp_path / "store")
    shard = tmp_path / "store" / "00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert [step.resumed for step in run(dataset, tmp_path / "store", config)] == [True, True, False, True]
    assert contents(tmp_path / "store") == made


def test_folder_in_use_by_another_run(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(UsageError, match="in use by another run"):
        run(dataset, tmp_path, config)


def test_nothing_usable(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    (tmp_path / "metadata.csv").write_text("a|\n")
    with pytest.raises(NothingToLearn):
        run(tmp_path, tmp_path / "store", config)
    assert not (tmp_path / "store").exists()


def test_nothing_usable_leaves_a_complete_store(dataset: Path, tmp_path: Path, config: EncodingConfig) -> None:
    nothing = [DroppedClip("a", "m:1", "invalid row", "is none")]
    list(Preparation(tmp_path / "store", config).run([nothing, *chunks(dataset)], SpeakerNumbers()))
    made = contents(tmp_path / "store")
    with pytest.raises(NothingToLearn):
        list(Preparation(tmp_path / "store", config).run([nothing], SpeakerNumbers()))
    assert contents(tmp_path / "store") == made


KILLED = """
import os, signal, sys
from pathlib import Path
from helpers.datasets import chunks
from csm_cli.data.dataset import SpeakerNumbers
from csm_cli.data.prepare import EncodingConfig, Preparation
import csm_cli.data.store as store
path = Path(sys.argv[2])
put = store.write_atomically
def dying(target, data):
    if target.name == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
    put(target, data)
store.write_atomically = dying
config = EncodingConfig(sys.argv[3], device="cpu", held_out=0.3)
list(Preparation(path, config).run(chunks(Path(sys.argv[1])), SpeakerNumbers()))
"""


@pytest.mark.parametrize("moment", ["00002.safetensors", "index.json"])
def test_sigkill_at_any_moment(
    dataset: Path, tmp_path: Path, config: EncodingConfig, tiny_checkpoint: Path, moment: str
) -> None:
    run(dataset, tmp_path / "whole", config)
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    command = [sys.executable, "-c", KILLED, str(dataset), str(tmp_path / "store"), str(tiny_checkpoint), moment]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(InputError, match="not a complete store"):
        open_store(tmp_path / "store")
    steps = run(dataset, tmp_path / "store", config)
    assert [step.resumed for step in steps].count(True) == {"00002.safetensors": 2, "index.json": 4}[moment]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


POSITIONS = 512  # of the tiny checkpoint


def clip(path: Path, seconds: float = 0.5, rate: int = 22050, text: str = "Some words.") -> TrainingClip:
    noise = np.random.default_rng(round(seconds * 1000)).normal(0, 0.1, round(seconds * rate))
    soundfile.write(path, noise, rate)
    return TrainingClip(0, text, Recording(path), path.name)


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    return Encoder(EncodingConfig(str(tiny_checkpoint), device="cpu"))


@pytest.fixture(scope="module")
def codec(tiny_checkpoint: Path) -> Codec:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)


def test_codes_are_those_of_the_codec(encoder: Encoder, codec: Codec, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.wav", 0.75)
    (example,), result = encoder.encode([TrainingConversation("set/a", (source,))])
    samples = torch.from_numpy(read_audio(tmp_path / "a.wav", codec.rate).samples)
    whole = torch.nn.functional.pad(samples, (0, -len(samples) % codec.frame_samples))
    assert torch.equal(example.turns[0].codes, codec.encode(whole))
    assert (example.id, example.turns[0].text, example.held_out) == ("set/a", "Some words.", False)
    assert result.usable == [(0, 0.75)] and not result.dropped


def test_batched_encoding_equals_single_encoding(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (0.9, 0.3, 0.55, 0.31, 1.2)
    conversations = [
        TrainingConversation(str(at), (clip(tmp_path / f"{at}.wav", seconds),)) for at, seconds in enumerate(lengths)
    ]
    alone = [encoder.encode([conversation])[0][0].turns[0].codes for conversation in conversations]
    monkeypatch.setattr(encoder, "batch_size", 3)
    together, result = encoder.encode(list(conversations))
    assert [example.id for example in together] == ["0", "1", "2", "3", "4"] and len(result.usable) == 5
    for example, codes in zip(together, alone, strict=True):
        assert torch.equal(example.turns[0].codes, codes)


def test_conversation_is_split_at_a_dropped_clip(encoder: Encoder, tmp_path: Path) -> None:
    good = clip(tmp_path / "a.wav")
    turns = [replace(good, text=text) for text in ("One.", "Two.", "", "Four.")]
    turns[0] = replace(turns[0], trained=False)
    broken = DroppedClip("set", "set:9", "invalid row", "is none")
    examples, result = encoder.encode([broken, TrainingConversation("set/talk", tuple(turns))])
    assert [(each.id, [(turn.text, turn.trained) for turn in each.turns]) for each in examples] == [
        ("set/talk#1", [("One.", False), ("Two.", True)]),
        ("set/talk#2", [("Four.", True)]),
    ]
    assert len(result.usable) == 3 and [clip.reason for clip in result.dropped] == ["invalid row", "no text"]


def test_clip_longer_than_the_context(encoder: Encoder, tmp_path: Path) -> None:
    wordy = clip(tmp_path / "a.wav", 20.0, text="a" * 300)
    examples, result = encoder.encode([TrainingConversation("set/a", (wordy,))])
    assert not examples and not result.usable
    (drop,) = result.dropped
    assert (drop.reason, drop.seconds) == ("exceeds context", 20.0)
    assert drop.detail == f"takes 556 positions, the model's context has {POSITIONS}"


def test_context_alone_makes_no_example(encoder: Encoder, tmp_path: Path) -> None:
    context = replace(clip(tmp_path / "a.wav"), trained=False)
    assert encoder.encode([TrainingConversation("set/a", (context, context))])[0] == []


def test_examples_of_a_conversation_are_held_out_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    split = Encoder(EncodingConfig(str(tiny_checkpoint), device="cpu", held_out=0.5))
    turns = (clip(tmp_path / "a.wav", 4.0, text="a" * 100),) * 5
    by_conversation: dict[str, list[Example]] = {}
    for name in ("a", "b", "c", "d", "e", "f"):
        by_conversation[name] = split.encode([TrainingConversation(name, turns)])[0]
    assert all(len(examples) > 1 for examples in by_conversation.values())
    assert [{each.held_out for each in by_conversation[name]} for name in by_conversation] == [
        {is_held_out(name, 0.5)} for name in by_conversation
    ]
    assert {is_held_out(name, 0.5) for name in by_conversation} == {True, False}


def test_held_out_share() -> None:
    names = [f"set/{number}" for number in range(5000)]
    few, more = ({name for name in names if is_held_out(name, share)} for share in (0.02, 0.1))
    assert 60 < len(few) < 140 and 400 < len(more) < 600 and few < more
    assert not any(is_held_out(name, 0.0) for name in names)


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), max_size=40))
def test_split_turns_fit_and_contain_each_turn_once(sizes: list[int]) -> None:
    turns = [CodedTurn(0, str(at), torch.empty(0, 4)) for at in range(len(sizes))]
    windows = list(split_turns(turns, sizes, 100))
    learned = [turn.text for window in windows for turn in window if turn.trained]
    assert learned == [turn.text for turn in turns]
    for window in windows:
        numbers = [int(turn.text) for turn in window]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert sum(sizes[number] for number in numbers) <= 100
        assert sum(sizes[number] for number, turn in zip(numbers, window, strict=True) if not turn.trained) <= 25


def test_split_turns_repeat_the_last_turns_as_context() -> None:
    turns = [CodedTurn(0, str(at), torch.empty(0, 4)) for at in range(5)]
    windows = list(split_turns(turns, [40, 30, 10, 10, 50], 100))
    parts = [[(turn.text, turn.trained) for turn in window] for window in windows]
    assert parts == [
        [("0", True), ("1", True), ("2", True), ("3", True)],
        [("2", False), ("3", False), ("4", True)],
    ]


def test_codec_digest_depends_on_the_codec_only(tiny_checkpoint: Path, silent_checkpoint: Path) -> None:
    tiny, mute = (open_checkpoint(str(folder)) for folder in (tiny_checkpoint, silent_checkpoint))
    assert codec_digest(tiny) == codec_digest(mute)  # another model, the same codec
    fewer = replace(tiny, config=replace(tiny.config, codebooks=tiny.config.codebooks - 1))
    changed = replace(tiny, codec_weights=_scaled(tiny))
    assert len({codec_digest(each) for each in (tiny, fewer, changed)}) == 3


def _scaled(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    weights = dict(checkpoint.codec_weights)
    name = next(iter(weights))
    return {**weights, name: weights[name] + 1}
