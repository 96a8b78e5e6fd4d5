"""Pauses that are written into a text: `[pause 0.5]` and empty lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.run import Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from csm_cli.generation.chunking import SpeechPauses, spell, split_pauses, split_speech
from csm_cli.generation.stream_joiner import StreamJoiner
from csm_cli.generation.take import Take, concatenate
from csm_cli.types import Conversation, Turn

Csm = Callable[..., Result]
RATE = 24000


@pytest.mark.parametrize(
    ("text", "first", "pieces"),
    [
        ("Hello there.", 0, [("Hello there.", None)]),
        ("One. [pause 0.5] Two.", 0, [("One.", 0.5), ("Two.", None)]),
        ("[pause 1]One.[pause 2]", 1, [("One.", 2)]),
        ("One. [pause 1] [pause 0.5]\n\nTwo.", 0, [("One.", 1.5), ("Two.", None)]),
        ("One.\n\nTwo.\n\n", 0, [("One.", 0.7), ("Two.", None)]),
        ("One. [pause 0.7] \n\n Two.", 0, [("One.", 0.7), ("Two.", None)]),
        ("One, [pause 0] two.", 0, [("One,", 0), ("two.", None)]),
        ("... [pause 1] One. [pause 1] ... Two.", 1, [("... One.", 1), ("... Two.", None)]),
        ("A [pause] is a rest.", 0, [("A [pause] is a rest.", None)]),
    ],
)
def test_a_text_is_split_at_its_pauses(text: str, first: float, pieces: list[tuple[str, float | None]]) -> None:
    assert split_pauses(text) == (first, pieces)


@given(
    st.lists(
        st.sampled_from(["One.", "Two, three.", "[pause 0.5]", "\n\n", " ", "... ", "A longer sentence of words."])
    )
)
def test_no_word_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    chunks = split_speech(text, 20)
    if "[pause" in text or "\n\n" in text:
        assert "[pause" not in "".join(chunks)
    letters = [char for char in text.replace("[pause 0.5]", "") if char.isalnum()]
    assert [char for chunk in chunks for char in chunk if char.isalnum()] == letters
    pauses = SpeechPauses.of(text, chunks)
    assert len(pauses.after) == len(chunks)
    if letters:
        assert pauses.total >= 0.5 * text.count("[pause 0.5]")


def test_pauses_of_chunks_follow_the_right_chunk() -> None:
    text = "First sentence here. Second sentence here. [pause 2] Third one. [pause 1]"
    chunks = split_speech(text, 25)
    assert chunks == ("First sentence here.", "Second sentence here.", "Third one.")
    assert SpeechPauses.of(text, chunks).after == (None, 2.0, 1.0)


def test_respelling_leaves_pauses_alone() -> None:
    conversation = Conversation((Turn(0, "x"),), lexicon={"pause": "paws", "5": "five"})
    assert spell("A pause. [pause 0.5] The end.", conversation) == "A paws. [pause 0.5] The end."


def sound(seconds: float = 0.5) -> NDArray[np.float32]:
    tone = 0.3 * np.sin(np.arange(round(seconds * RATE)) * 0.1)
    return np.pad(tone, round(0.1 * RATE)).astype(np.float32)


def test_silence_is_as_long_as_written_and_a_stream_equals_the_file() -> None:
    text = "[pause 1] One. [pause 0.5] Two. [pause 2]"
    chunks = split_speech(text, 0)
    pauses = SpeechPauses.of(text, chunks)
    takes = [Take(torch.zeros(1, 1, dtype=torch.int64), sound(), "eos", 1, "") for _ in chunks]
    samples, segments = concatenate(chunks, takes, RATE, pauses)
    loud = np.flatnonzero(np.abs(samples) > 0.02) / RATE
    gaps = np.diff(loud)
    assert loud[0] == pytest.approx(1, abs=0.06) and gaps.max() == pytest.approx(0.5, abs=0.06)
    assert len(samples) / RATE - loud[-1] == pytest.approx(2.1, abs=0.06)  # and the end of the take
    assert [segment.text for segment in segments] == ["One.", "Two."]
    assert segments[0].start == pytest.approx(1, abs=0.06) and segments[1].end == pytest.approx(
        loud[-1] + 0.1, abs=0.05
    )
    joiner, parts = StreamJoiner(RATE, pauses), []
    for index, (chunk, take) in enumerate(zip(chunks, takes, strict=True)):
        parts += [joiner.push(piece) for piece in np.array_split(take.samples, 3)]
        parts.append(joiner.end_take(chunk, 1, len(take.samples), index + 1 == len(takes)))
        joiner.start_take()
    assert np.abs(np.concatenate(parts) - samples).max() < 1e-6
    assert [each.end for each in joiner.segments] == pytest.approx([each.end for each in segments], abs=1e-3)


def test_pauses_are_in_the_file_the_subtitles_and_the_metadata(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        'turns: [{a: "One. [pause 0.5] Two."}, {a: "Three.\\n\\nFour."}]', encoding="utf-8"
    )
    run = ("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "--max-duration", "0.4")
    result = csm(*run, "-o", tmp_path / "o.wav", "--json", "--subs", "json")
    assert result.code == 0, result.err
    turns = result.json["turns"]
    assert [[each["text"] for each in turn["segments"]] for turn in turns] == [["One.", "Two."], ["Three.", "Four."]]
    gaps = [turn["segments"][1]["start_s"] - turn["segments"][0]["end_s"] for turn in turns]
    assert gaps == pytest.approx([0.5, 0.7], abs=0.05)
    cues = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert [cue["text"] for cue in cues] == ["One.", "Two.", "Three.", "Four."]
    assert soundfile.info(tmp_path / "o.wav").duration == pytest.approx(cues[-1]["end"], abs=0.01)
    again = csm(*run, "-o", tmp_path / "o.wav", "--json").json
    assert all(turn["reused"] for turn in again["turns"]) and again["duration_s"] == result.json["duration_s"]


@pytest.mark.parametrize("text", ["Hi. [pause 0,5]", "Hi. [pause -1]", "Hi. [pause 90]", "Hi [Pause 1]", "[pause 1]"])
def test_an_impossible_pause_is_named(csm: Csm, tmp_path: Path, text: str) -> None:
    result = csm("say", text, "-o", tmp_path / "a.wav")
    assert result.code == 3 and ("[pause 0.5]" in result.err or "nothing to speak" in result.err)
    (tmp_path / "s.jsonl").write_text(json.dumps({"speaker": 0, "text": text}), encoding="utf-8")
    assert csm("check", tmp_path / "s.jsonl").code == 3


def test_a_pause_in_a_plain_dialogue_is_no_speaker(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "play.txt").write_text(
        "ANA: Hello.\n[pause 1]\nIs it late?\nBEN: Yes.\nANA: Oh.\nBEN: Well.\n", "utf-8"
    )
    result = csm("script", "convert", tmp_path / "play.txt")
    assert result.code == 0 and "[pause 1]" in result.out and "speakers: 2" not in result.out
