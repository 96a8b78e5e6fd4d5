"""Clips to examples: codes as the codec gives them, conversations cut to the window by whole turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.audio.io import read_audio
from csm_cli.checkpoint import open_checkpoint
from csm_cli.data import encode
from csm_cli.data.clips import DroppedClip, TrainingClip, TrainingConversation
from csm_cli.data.encode import Encoder, EncodingRecipe, codec_identity, is_held_out, split_to_windows
from csm_cli.data.store import CodedTurn, Example
from csm_cli.models.mimi import Codec
from csm_cli.types import Recording

POSITIONS = 512  # of the tiny checkpoint


def clip(path: Path, seconds: float = 0.5, rate: int = 22050, text: str = "Some words.") -> TrainingClip:
    noise = np.random.default_rng(round(seconds * 1000)).normal(0, 0.1, round(seconds * rate))
    soundfile.write(path, noise, rate)
    return TrainingClip(0, text, Recording(path), path.name)


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    return Encoder(EncodingRecipe(str(tiny_checkpoint), device="cpu"))


@pytest.fixture(scope="module")
def codec(tiny_checkpoint: Path) -> Codec:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)


def test_codes_are_the_codecs(encoder: Encoder, codec: Codec, tmp_path: Path) -> None:
    said = clip(tmp_path / "a.wav", 0.75)
    (example,), found = encoder.encode([TrainingConversation("set/a", (said,))])
    samples = torch.from_numpy(read_audio(tmp_path / "a.wav", codec.rate).samples)
    whole = torch.nn.functional.pad(samples, (0, -len(samples) % codec.frame_samples))
    assert torch.equal(example.turns[0].codes, codec.encode(whole))
    assert (example.id, example.turns[0].text, example.held_out) == ("set/a", "Some words.", False)
    assert found.kept == [(0, 0.75)] and not found.drops


def test_clips_encoded_together_are_each_as_alone(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (0.9, 0.3, 0.55, 0.31, 1.2)
    talks = [
        TrainingConversation(str(at), (clip(tmp_path / f"{at}.wav", seconds),)) for at, seconds in enumerate(lengths)
    ]
    alone = [encoder.encode([talk])[0][0].turns[0].codes for talk in talks]
    monkeypatch.setattr(encoder, "_batch", 3)
    together, found = encoder.encode(list(talks))
    assert [example.id for example in together] == ["0", "1", "2", "3", "4"] and len(found.kept) == 5
    for example, codes in zip(together, alone, strict=True):
        assert torch.equal(example.turns[0].codes, codes)


def test_a_conversation_begins_anew_after_what_is_left_out(encoder: Encoder, tmp_path: Path) -> None:
    good = clip(tmp_path / "a.wav")
    turns = [replace(good, text=text) for text in ("One.", "Two.", "", "Four.")]
    turns[0] = replace(turns[0], learned=False)
    broken = DroppedClip("set", "set:9", "broken row", "is none")
    examples, found = encoder.encode([broken, TrainingConversation("set/talk", tuple(turns))])
    assert [(each.id, [(turn.text, turn.learned) for turn in each.turns]) for each in examples] == [
        ("set/talk#1", [("One.", False), ("Two.", True)]),
        ("set/talk#2", [("Four.", True)]),
    ]
    assert len(found.kept) == 3 and [drop.reason for drop in found.drops] == ["broken row", "no text"]


def test_a_clip_the_window_does_not_hold(encoder: Encoder, tmp_path: Path) -> None:
    wordy = clip(tmp_path / "a.wav", 20.0, text="a" * 300)
    examples, found = encoder.encode([TrainingConversation("set/a", (wordy,))])
    assert not examples and not found.kept
    (drop,) = found.drops
    assert (drop.reason, drop.seconds) == ("no room", 20.0)
    assert drop.detail == f"takes 556 positions, the model's window has {POSITIONS}"


def test_context_alone_is_no_example(encoder: Encoder, tmp_path: Path) -> None:
    heard = replace(clip(tmp_path / "a.wav"), learned=False)
    assert encoder.encode([TrainingConversation("set/a", (heard, heard))])[0] == []


def test_windows_of_one_conversation_are_on_one_side_of_the_split(tiny_checkpoint: Path, tmp_path: Path) -> None:
    split = Encoder(EncodingRecipe(str(tiny_checkpoint), device="cpu", held_out=0.5))
    turns = (clip(tmp_path / "a.wav", 4.0, text="a" * 100),) * 5
    by_talk: dict[str, list[Example]] = {}
    for name in ("a", "b", "c", "d", "e", "f"):
        by_talk[name] = split.encode([TrainingConversation(name, turns)])[0]
    assert all(len(examples) > 1 for examples in by_talk.values())
    assert [{each.held_out for each in by_talk[name]} for name in by_talk] == [
        {is_held_out(name, 0.5)} for name in by_talk
    ]
    assert {is_held_out(name, 0.5) for name in by_talk} == {True, False}


def test_the_split_is_of_about_the_share_asked_for_and_grows_with_it() -> None:
    names = [f"set/{number}" for number in range(5000)]
    few, more = ({name for name in names if is_held_out(name, share)} for share in (0.02, 0.1))
    assert 60 < len(few) < 140 and 400 < len(more) < 600 and few < more
    assert not any(is_held_out(name, 0.0) for name in names)


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), max_size=40))
def test_windows_hold_every_turn_once_and_never_too_much(sizes: list[int]) -> None:
    turns = [CodedTurn(0, str(at), torch.empty(0, 4)) for at in range(len(sizes))]
    windows = list(split_to_windows(turns, sizes, 100))
    learned = [turn.text for window in windows for turn in window if turn.learned]
    assert learned == [turn.text for turn in turns]
    for window in windows:
        numbers = [int(turn.text) for turn in window]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert sum(sizes[number] for number in numbers) <= 100
        assert sum(sizes[number] for number, turn in zip(numbers, window, strict=True) if not turn.learned) <= 25


def test_a_window_goes_on_with_the_end_of_the_one_before_as_context() -> None:
    turns = [CodedTurn(0, str(at), torch.empty(0, 4)) for at in range(5)]
    windows = list(split_to_windows(turns, [40, 30, 10, 10, 50], 100))
    told = [[(turn.text, turn.learned) for turn in window] for window in windows]
    assert told == [
        [("0", True), ("1", True), ("2", True), ("3", True)],
        [("2", False), ("3", False), ("4", True)],
    ]


def test_a_codec_is_known_by_what_it_computes(tiny_checkpoint: Path, mute_checkpoint: Path) -> None:
    tiny, mute = (open_checkpoint(str(folder)) for folder in (tiny_checkpoint, mute_checkpoint))
    assert codec_identity(tiny) == codec_identity(mute)  # another model, the same codec
    fewer = replace(tiny, config=replace(tiny.config, codebooks=tiny.config.codebooks - 1))
    changed = replace(tiny, codec_weights=_scaled(tiny))
    assert len({codec_identity(each) for each in (tiny, fewer, changed)}) == 3


def _scaled(checkpoint: encode.Checkpoint) -> dict[str, torch.Tensor]:
    weights = dict(checkpoint.codec_weights)
    name = next(iter(weights))
    return {**weights, name: weights[name] + 1}
