"""What a window holds of a conversation, and what leaves it."""

from __future__ import annotations

import pytest
import torch
from tiny import frame_rows, text_rows

from csm_cli.generation.context_window import ContextWindow, PromptTurn, WindowLimits

WINDOW = WindowLimits(positions=100, frame_rate=12.5)


def heard(turn: int, length: int, speaker: int = 0) -> PromptTurn:
    return PromptTurn(turn, speaker, "x" * length, text_rows(torch.full((length,), turn), 4))


def said(speaker: int, characters: int, frames: int) -> PromptTurn:
    rows = torch.cat((text_rows(torch.arange(3), 4), frame_rows(torch.ones(frames, 4, dtype=torch.int64))))
    return PromptTurn(1, speaker, "x" * characters, rows)


def held(memory: ContextWindow) -> list[int]:
    """The turns of which the window holds something, one number a position."""
    return memory.prompt(text_rows(torch.empty(0, dtype=torch.int64), 4))[:, -1].tolist()


def test_whole_turns_leave_oldest_first_and_no_more_than_needed() -> None:
    memory = ContextWindow(WINDOW)
    memory.pin(heard(0, 20))
    for turn, length in ((1, 10), (1, 10), (2, 20), (3, 30)):
        memory.add(heard(turn, length))
    assert memory.make_room(10, turn=4) == []
    assert memory.make_room(11, turn=4) == [1]
    assert held(memory) == [0] * 20 + [2] * 20 + [3] * 30


def test_context_never_leaves() -> None:
    memory = ContextWindow(WINDOW)
    memory.pin(heard(0, 60))
    memory.add(heard(1, 20))
    assert memory.make_room(90, turn=2) == [1]
    assert held(memory) == [0] * 60


def test_past_turns_leave_where_it_would_no_longer_be_easy() -> None:
    memory = ContextWindow(WindowLimits(positions=100, frame_rate=12.5, easy=50))
    memory.pin(heard(0, 30))
    memory.add(heard(1, 10))
    assert memory.make_room(10, turn=2) == []
    assert memory.make_room(60, turn=2) == [1]
    assert held(memory) == [0] * 30


def test_parts_of_the_turn_in_hand_leave_one_by_one() -> None:
    memory = ContextWindow(WINDOW)
    for turn in (1, 2, 2, 2):
        memory.add(heard(turn, 20))
    assert memory.make_room(60, turn=2) == [1, 2]
    assert held(memory) == [2] * 40


@pytest.mark.parametrize(
    ("characters", "frames", "rate"),
    [(30, 25, 15.0), (30, 12, None), (1, 25, 4.0), (400, 25, 24.0)],
)
def test_a_speakers_rate_is_known_from_a_second_on_and_bounded(
    characters: int, frames: int, rate: float | None
) -> None:
    memory = ContextWindow(WINDOW)
    memory.pin(said(0, characters, frames))
    assert memory.rate(0) == rate
    assert memory.rate(1) is None


def test_context_and_past_turns_count_together() -> None:
    memory = ContextWindow(WINDOW)
    memory.pin(said(0, 20, 25))
    memory.add(said(0, 40, 25))
    memory.add(said(1, 99, 25))
    assert memory.rate(0) == 15.0


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.01, 1), (0.24, 3), (1.0, 12)])
def test_a_duration_is_whole_frames(seconds: float, frames: int) -> None:
    assert WINDOW.frames(seconds) == frames
