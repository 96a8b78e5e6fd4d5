"""What a context window holds of a conversation, what is evicted, and what is estimated of both before synthesis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.audio import write_tone
from helpers.tiny import frame_rows, text_rows

from csm_cli.checkpoint import read_checkpoint_config
from csm_cli.generation.context_window import (
    ContextWindow,
    PromptTurn,
    TurnEstimate,
    WindowLimits,
    estimate_turns,
    track_seconds,
)
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.types import Conversation, GenerationOptions, Recording, Turn

LIMITS = WindowLimits(positions=100, frame_rate=12.5)
UNSET = GenerationOptions()


def entry(turn: int, length: int, speaker: int = 0) -> PromptTurn:
    """A turn of so many text tokens, each its number."""
    return PromptTurn(turn, speaker, "x" * length, text_rows(torch.full((length,), turn), 4))


def speech(speaker: int, characters: int, frames: int) -> PromptTurn:
    tokens = torch.cat((text_rows(torch.arange(3), 4), frame_rows(torch.ones(frames, 4, dtype=torch.int64))))
    return PromptTurn(1, speaker, "x" * characters, tokens)


def turns_held(window: ContextWindow) -> list[int]:
    """The turn of each position."""
    return window.prompt(text_rows(torch.empty(0, dtype=torch.int64), 4))[:, -1].tolist()


def test_whole_turns_are_evicted_oldest_first_and_no_more_than_needed() -> None:
    window = ContextWindow(LIMITS)
    window.add_context(entry(0, 20))
    for turn, length in ((1, 10), (1, 10), (2, 20), (3, 30)):
        window.add_turn(entry(turn, length))
    assert window.evict(10, current_turn=4) == []
    assert window.evict(11, current_turn=4) == [1]
    assert turns_held(window) == [0] * 20 + [2] * 20 + [3] * 30


def test_context_is_never_evicted() -> None:
    window = ContextWindow(LIMITS)
    window.add_context(entry(0, 60))
    window.add_turn(entry(1, 20))
    assert window.evict(90, current_turn=2) == [1]
    assert turns_held(window) == [0] * 60


def test_turns_are_evicted_beyond_the_soft_limit() -> None:
    window = ContextWindow(WindowLimits(positions=100, frame_rate=12.5, soft_limit=50))
    window.add_context(entry(0, 30))
    window.add_turn(entry(1, 10))
    assert window.evict(10, current_turn=2) == []
    assert window.evict(60, current_turn=2) == [1]
    assert turns_held(window) == [0] * 30


def test_segments_of_the_current_turn_are_evicted_one_by_one() -> None:
    window = ContextWindow(LIMITS)
    for turn in (1, 2, 2, 2):
        window.add_turn(entry(turn, 20))
    assert window.evict(60, current_turn=2) == [1, 2]
    assert turns_held(window) == [2] * 40


@pytest.mark.parametrize(
    ("characters", "frames", "rate"),
    [(30, 25, 15.0), (30, 12, None), (1, 25, 4.0), (400, 25, 24.0)],
)
def test_a_speaking_rate_needs_a_second_of_speech_and_is_bounded(
    characters: int, frames: int, rate: float | None
) -> None:
    window = ContextWindow(LIMITS)
    window.add_context(speech(0, characters, frames))
    assert window.speaking_rate(0) == rate
    assert window.speaking_rate(1) is None


def test_the_speaking_rate_is_over_context_and_past_turns() -> None:
    window = ContextWindow(LIMITS)
    window.add_context(speech(0, 20, 25))
    window.add_turn(speech(0, 40, 25))
    window.add_turn(speech(1, 99, 25))
    assert window.speaking_rate(0) == 15.0


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.01, 1), (0.24, 3), (1.0, 12)])
def test_a_duration_is_whole_frames(seconds: float, frames: int) -> None:
    assert LIMITS.frames(seconds) == frames


@pytest.fixture(scope="module")
def prompt_builder(tiny_checkpoint: Path) -> PromptBuilder:
    model = read_checkpoint_config(str(tiny_checkpoint))
    return PromptBuilder(model.tokenizer_file, model.config)


def conversation(*texts: str) -> Conversation:
    return Conversation(tuple(Turn(0, text) for text in texts))


def test_a_turn_needs_its_tokens_its_frames_and_the_end_frame(prompt_builder: PromptBuilder) -> None:
    """One token a byte: "[0]" and 14 letters between begin and end of text; 14 letters are about a second."""
    _, (turn,) = estimate_turns(conversation("Hello there me"), prompt_builder, WindowLimits(500), UNSET)
    assert (turn.tokens, turn.seconds, turn.positions, turn.peak_positions) == (19, 1.0, 19 + 12 + 1, 32)


def test_recordings_have_their_own_duration_and_the_maximum_duration_counts(
    prompt_builder: PromptBuilder, tmp_path: Path
) -> None:
    recorded = Turn(0, "Hi", recording=Recording(write_tone(tmp_path / "a.wav", 2.0), 0.4, 1.6))
    whole = replace(recorded, recording=Recording(tmp_path / "a.wav"))
    script = replace(conversation("word " * 50), context=(recorded, whole))
    context, (turn,) = estimate_turns(script, prompt_builder, WindowLimits(500), GenerationOptions(max_duration=3.0))
    assert [round(each.seconds, 3) for each in context] == [1.2, 2.0] and turn.seconds == 3.0
    assert turn.context_positions == sum(each.positions for each in context)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (WindowLimits(100), [((), 32), ((), 64), ((), 96), ((1,), 96), ((2,), 96)]),
        (WindowLimits(500, soft_limit=70), [((), 32), ((), 64), ((1,), 64), ((2,), 64), ((3,), 64)]),
    ],
)
def test_the_estimate_evicts_as_the_window_does(
    prompt_builder: PromptBuilder, limits: WindowLimits, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    _, turns = estimate_turns(conversation(*["Hello there me"] * 5), prompt_builder, limits, UNSET)
    assert [(turn.evicted, turn.peak_positions) for turn in turns] == expected


def test_the_track_has_gaps_overlaps_and_the_tail() -> None:
    gaps = (1.0, -2.5, 0.5)  # turns at 1 to 4, 1.5 to 2.5, 3 to 3.25
    turns = tuple(replace(turn, gap=gap) for turn, gap in zip(conversation("a", "b", "c").turns, gaps, strict=True))
    estimates = [TurnEstimate(number, 1, seconds, 0) for number, seconds in enumerate((3.0, 1.0, 0.25), 1)]
    assert track_seconds(Conversation(turns, tail=0.5), estimates) == 4.5
