"""What a dialogue will take, before it is spoken: tokens, seconds, and room in the model's window. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csm_cli.audio import probe
from csm_cli.prompt import Prompter
from csm_cli.types import Conversation, Options, Turn

FRAME_RATE = 12.5  # Mimi's, per second
_CHARACTERS_PER_SECOND = 14.0  # about what people say


@dataclass(frozen=True)
class Window:
    """positions: the model's; options: above the script's own."""

    positions: int
    options: Options


@dataclass(frozen=True)
class Cost:
    """What one turn takes. tokens: of its text; seconds: its length, estimated where it is to be spoken.

    heard: positions of all that is heard before it; forgotten: numbers of the turns that leave the window for it.
    """

    tokens: int
    seconds: float
    heard: int
    forgotten: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Of its text, its frames and the frame that ends it."""
        return self.tokens + round(self.seconds * FRAME_RATE) + 1

    @property
    def window(self) -> int:
        """Positions in use when it has been spoken."""
        return self.heard + self.positions


def costs(talk: Conversation, prompter: Prompter, window: Window) -> tuple[list[Cost], list[Cost]]:
    """What each turn of the context and each turn of the script takes.

    Raises:
        AudioUnreadable: a recording that is not there any more.
    """
    context: list[Cost] = []
    for turn in talk.context:
        context.append(_cost(turn, prompter, window.options, sum(each.positions for each in context)))
    pinned = sum(each.positions for each in context)
    return context, list(_spoken(talk, prompter, window, pinned))


def _spoken(talk: Conversation, prompter: Prompter, window: Window, pinned: int) -> Iterator[Cost]:
    options = window.options.over(talk.defaults)
    past: list[tuple[int, int]] = []
    for number, turn in enumerate(talk.turns, 1):
        cost = _cost(turn, prompter, options, 0)
        forgotten: list[int] = []
        while past and pinned + sum(size for _, size in past) + cost.positions > window.positions:
            forgotten.append(past.pop(0)[0])
        heard = pinned + sum(size for _, size in past)
        yield Cost(cost.tokens, cost.seconds, heard, tuple(forgotten))
        past.append((number, cost.positions))


def _cost(turn: Turn, prompter: Prompter, base: Options, heard: int) -> Cost:
    tokens = len(prompter.text_ids(turn.speaker, turn.text))
    if turn.recording:
        start, end = turn.recording.start or 0.0, turn.recording.end
        return Cost(tokens, (probe(turn.recording.path).duration if end is None else end) - start, heard)
    cap = turn.options.over(base).max_duration
    seconds = len(turn.text) / _CHARACTERS_PER_SECOND
    return Cost(tokens, min(seconds, cap) if cap else seconds, heard)


def length(talk: Conversation, turns: Sequence[Cost]) -> float:
    """Seconds of the track, with its gaps and overlaps."""
    end = longest = 0.0
    for turn, cost in zip(talk.turns, turns, strict=True):
        end = max(0.0, end + turn.gap) + cost.seconds
        longest = max(longest, end)
    return longest + talk.tail
