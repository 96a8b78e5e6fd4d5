"""The model's context window: what it holds of a conversation, what is evicted, and an estimate of both. No torch here.

The given context of a conversation is never evicted. If its past turns leave too little space, the oldest are evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

from csm_cli.generation.chunking import SpeechPauses, spell, split_speech, spoken_length
from csm_cli.types import Conversation, GenerationOptions, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from csm_cli.generation.prompt import PromptBuilder

MIMI_FRAME_RATE = 12.5  # frames per second
# A speaker's rate is measured from at least so many seconds of speech, and is within these characters per second.
MIN_SPEECH_SECONDS = 1.0
MIN_SPEAKING_RATE, MAX_SPEAKING_RATE = 4.0, 24.0
_TYPICAL_SPEAKING_RATE = 14.0  # for estimates


class _HasPositions(Protocol):
    @property
    def turn(self) -> int: ...

    @property
    def positions(self) -> int: ...


Entry = TypeVar("Entry", bound=_HasPositions)


def evict(past: list[Entry], needed: int, available: int, current_turn: int) -> list[int]:
    """Removes entries from `past`, oldest first, until `needed` more positions fit into `available`, or it is empty.

    Turns are removed whole, except `current_turn`, whose segments are removed one by one. Returns the numbers of the
    turns of which something was removed.
    """
    evicted: list[int] = []
    while past and sum(entry.positions for entry in past) + needed > available:
        oldest = past[0].turn
        if oldest not in evicted:
            evicted.append(oldest)
        past[:] = past[1:] if oldest == current_turn else [entry for entry in past if entry.turn != oldest]
    return evicted


@dataclass(frozen=True)
class WindowLimits:
    """positions: of the model. frame_rate: frames per second of audio.

    soft_limit: positions beyond which past turns are evicted, for a checkpoint that speaks worse with a longer context;
    0 for all positions.
    """

    positions: int
    frame_rate: float = MIMI_FRAME_RATE
    soft_limit: int = 0

    def frames(self, seconds: float) -> int:
        """Whole frames in a duration, at least one."""
        return max(1, int(seconds * self.frame_rate + 1e-6))


@dataclass(frozen=True, eq=False)
class PromptTurn:
    """A turn, or a segment of one, in the prompt of later ones. turn: its number; tokens: [S, K + 1], as prompted."""

    turn: int
    speaker: int
    text: str
    tokens: Tensor

    @property
    def positions(self) -> int:
        return len(self.tokens)

    @cached_property
    def frames(self) -> int:
        """Frames of speech, without the frame that ends the turn."""
        return max(0, int((self.tokens[:, -1] < 0).sum()) - 1)

    @cached_property
    def spoken_length(self) -> int:
        """Of its text, as the function of that name."""
        return spoken_length(self.text)


class ContextWindow:
    """The prompt of one conversation so far: its context, and the past turns that were not evicted."""

    def __init__(self, limits: WindowLimits) -> None:
        self.limits = limits
        self._context: list[PromptTurn] = []
        self._past: list[PromptTurn] = []

    def add_context(self, entry: PromptTurn) -> None:
        self._context.append(entry)

    def add_turn(self, entry: PromptTurn) -> None:
        self._past.append(entry)

    def prompt(self, text_tokens: Tensor) -> Tensor:
        """The whole prompt [S, K + 1] of a turn with these tokens."""
        import torch

        return torch.cat([*(entry.tokens for entry in (*self._context, *self._past)), text_tokens])

    def evict(self, needed: int, current_turn: int) -> list[int]:
        """Evicts past turns until `needed` positions are free; returns their numbers, as the function `evict` does."""
        available = self.limits.soft_limit or self.limits.positions
        return evict(self._past, needed, available - sum(each.positions for each in self._context), current_turn)

    def speaking_rate(self, speaker: int) -> float | None:
        """Characters per second of a speaker; None if the window holds too little of their speech."""
        entries = [entry for entry in (*self._context, *self._past) if entry.speaker == speaker]
        seconds = sum(entry.frames for entry in entries) / self.limits.frame_rate
        if seconds < MIN_SPEECH_SECONDS:
            return None
        rate = sum(entry.spoken_length for entry in entries) / seconds
        return min(max(rate, MIN_SPEAKING_RATE), MAX_SPEAKING_RATE)


@dataclass(frozen=True)
class TurnEstimate:
    """What a turn is expected to need. turn: its number; tokens: of its text; seconds: of audio.

    positions: of its text, its frames and the frame that ends each of its chunks. context_positions: in the window
    before it. evicted: numbers of the turns that are evicted for it.
    """

    turn: int
    tokens: int
    seconds: float
    positions: int
    chunks: int = 1
    context_positions: int = 0
    evicted: tuple[int, ...] = ()

    @property
    def peak_positions(self) -> int:
        return self.context_positions + self.positions


def estimate_turns(
    conversation: Conversation,
    prompt_builder: PromptBuilder,
    limits: WindowLimits,
    flags: GenerationOptions,
    chunk_chars: int = 0,
) -> tuple[list[TurnEstimate], list[TurnEstimate]]:
    """Estimates for each context turn and each turn, with options and chunks as `Synthesizer.speak` resolves them.

    Raises:
        AudioUnreadable: a recording cannot be read.
    """

    def estimate(number: int, turn: Turn) -> TurnEstimate:
        limit = flags.over(turn.options).over(conversation.defaults).max_duration
        chars = 0 if limit else chunk_chars
        chunks = (turn.text,) if turn.recording else split_speech(turn.text, chars, conversation.language)
        texts = chunks if turn.recording else [spell(chunk, conversation) for chunk in chunks]
        tokens = sum(len(prompt_builder.text_ids(turn.speaker, text)) for text in texts)
        if turn.recording:
            from csm_cli.audio.io import probe

            end = turn.recording.end
            seconds = (probe(turn.recording.path).duration if end is None else end) - (turn.recording.start or 0.0)
        else:
            lengths = [spoken_length(chunk) / _TYPICAL_SPEAKING_RATE for chunk in chunks]
            seconds = sum(min(length, limit) if limit else length for length in lengths)
        positions = tokens + round(seconds * limits.frame_rate) + len(texts)
        if not turn.recording:
            seconds += SpeechPauses.of(turn.text, chunks).total
        return TurnEstimate(number, tokens, seconds, positions, len(texts))

    context: list[TurnEstimate] = []
    used = 0
    for turn in conversation.context:
        context.append(replace(estimate(0, turn), context_positions=used))
        used += context[-1].positions
    turns: list[TurnEstimate] = []
    past: list[TurnEstimate] = []
    available = (limits.soft_limit or limits.positions) - used
    for number, turn in enumerate(conversation.turns, 1):
        new = estimate(number, turn)
        evicted = evict(past, new.positions, available, number)
        before = used + sum(each.positions for each in past)
        past.append(replace(new, context_positions=before, evicted=tuple(evicted)))
        turns.append(past[-1])
    return context, turns


def track_seconds(conversation: Conversation, turns: Sequence[TurnEstimate]) -> float:
    """Seconds of the mixed track, with gaps, overlaps and tail."""
    end = last_end = 0.0
    for turn, estimate in zip(conversation.turns, turns, strict=True):
        end = max(0.0, end + turn.gap) + estimate.seconds
        last_end = max(last_end, end)
    return last_end + conversation.tail
