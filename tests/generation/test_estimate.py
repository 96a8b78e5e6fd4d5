from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_tone

from csm_cli.checkpoint import read_checkpoint_config
from csm_cli.generation.estimate import EstimateContext, TurnEstimate, estimate_turns, track_seconds
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.types import Conversation, GenerationOptions, Recording, Turn


@pytest.fixture(scope="module")
def prompt_builder(tiny_checkpoint: Path) -> PromptBuilder:
    model = read_checkpoint_config(str(tiny_checkpoint))
    return PromptBuilder(model.tokenizer_file, model.config)


def talk(*texts: str) -> Conversation:
    return Conversation(tuple(Turn(0, text) for text in texts))


def test_a_turn_takes_its_tokens_its_frames_and_the_end(prompt_builder: PromptBuilder) -> None:
    """One token a byte: "[0]" and 14 letters between begin and end of text; 14 letters are about a second."""
    _, (cost,) = estimate_turns(talk("Hello there me"), prompt_builder, EstimateContext(500, GenerationOptions()))
    assert (cost.tokens, cost.seconds, cost.positions, cost.window) == (19, 1.0, 19 + 12 + 1, 32)


def test_recordings_are_as_long_as_they_are_and_caps_count(prompt_builder: PromptBuilder, tmp_path: Path) -> None:
    heard = Turn(0, "Hi", recording=Recording(write_tone(tmp_path / "a.wav", 2.0), 0.4, 1.6))
    spoken = replace(talk("word " * 50), context=(heard, replace(heard, recording=Recording(tmp_path / "a.wav"))))
    context, (cost,) = estimate_turns(spoken, prompt_builder, EstimateContext(500, GenerationOptions(max_duration=3.0)))
    assert [round(each.seconds, 3) for each in context] == [1.2, 2.0] and cost.seconds == 3.0
    assert cost.heard == sum(each.positions for each in context)


def test_what_a_full_window_forgets(prompt_builder: PromptBuilder) -> None:
    _, found = estimate_turns(talk(*["Hello there me"] * 5), prompt_builder, EstimateContext(100, GenerationOptions()))
    assert [(cost.evicted, cost.window) for cost in found] == [((), 32), ((), 64), ((), 96), ((1,), 96), ((2,), 96)]


def test_past_turns_leave_beyond_what_is_easy(prompt_builder: PromptBuilder) -> None:
    _, found = estimate_turns(
        talk(*["Hello there me"] * 3), prompt_builder, EstimateContext(500, GenerationOptions(), easy=70)
    )
    assert [(cost.evicted, cost.window) for cost in found] == [((), 32), ((), 64), ((1,), 64)]


def test_length_counts_gaps_overlaps_and_the_tail() -> None:
    turns = tuple(replace(turn, gap=gap) for turn, gap in zip(talk("a", "b", "c").turns, (1.0, -2.5, 0.5), strict=True))
    spans = [TurnEstimate(1, seconds, 0) for seconds in (3.0, 1.0, 0.25)]  # 1 to 4, 1.5 to 2.5, 3 to 3.25
    assert track_seconds(Conversation(turns, tail=0.5), spans) == 4.5
