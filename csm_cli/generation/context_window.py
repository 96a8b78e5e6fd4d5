"""What the model has heard of one conversation, as far as its window holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.generation.chunking import spoken_length

# A speaker's usual rate is known from this much of their speech, and lies between these.
LEAST_SECONDS = 1.0
SLOWEST_USUAL, FASTEST_USUAL = 4.0, 24.0  # characters per second


@dataclass(frozen=True)
class WindowLimits:
    """The model's window: positions in all, and frames per second of speech.

    easy: positions beyond which past turns leave, for a checkpoint that speaks worse after many; 0 for all there are.
    """

    positions: int
    frame_rate: float
    easy: int = 0

    def frames(self, seconds: float) -> int:
        """Whole frames in a duration, at least one."""
        return max(1, int(seconds * self.frame_rate + 1e-6))


@dataclass(frozen=True, eq=False)
class PromptTurn:
    """A turn, or a part of one, as later turns hear it. turn: its number; rows: [S, K + 1], text and frames."""

    turn: int
    speaker: int
    text: str
    rows: Tensor

    @property
    def frames(self) -> int:
        """Frames of speech; the one that ends the turn is none."""
        return max(0, int((self.rows[:, -1] < 0).sum()) - 1)


class ContextWindow:
    """Context, which stays, and past turns, which leave a full window as whole turns, oldest first."""

    def __init__(self, window: WindowLimits) -> None:
        self.window = window
        self._context: list[PromptTurn] = []
        self._past: list[PromptTurn] = []

    def pin(self, heard: PromptTurn) -> None:
        self._context.append(heard)

    def add(self, heard: PromptTurn) -> None:
        self._past.append(heard)

    def prompt(self, text_rows: Tensor) -> Tensor:
        """All that was heard, then the text to be spoken: [S, K + 1]."""
        return torch.cat((*(each.rows for each in (*self._context, *self._past)), text_rows))

    def make_room(self, positions: int, turn: int) -> list[int]:
        """Forgets past turns until so many of the easy positions are free, or none is left; returns their numbers.

        turn: the one in hand, whose own parts leave last, one by one.
        """
        evicted: list[int] = []
        while self._past and self._free < positions:
            oldest = self._past[0].turn
            evicted += [] if oldest in evicted else [oldest]
            kept = self._past[1:]
            self._past = kept if oldest == turn else [each for each in kept if each.turn != oldest]
        return evicted

    def rate(self, speaker: int) -> float | None:
        """Characters per second in what was heard of a speaker, None where that is too little to tell."""
        heard = [each for each in (*self._context, *self._past) if each.speaker == speaker]
        seconds = sum(each.frames for each in heard) / self.window.frame_rate
        if seconds < LEAST_SECONDS:
            return None
        usual = sum(spoken_length(each.text) for each in heard) / seconds
        return min(max(usual, SLOWEST_USUAL), FASTEST_USUAL)

    @property
    def _free(self) -> int:
        return (self.window.easy or self.window.positions) - sum(
            len(each.rows) for each in (*self._context, *self._past)
        )
