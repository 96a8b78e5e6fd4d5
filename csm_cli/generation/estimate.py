"""What a dialogue will take, before it is spoken: tokens, seconds, and room in the model's window. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from csm_cli.audio.io import probe
from csm_cli.generation.chunking import apply_lexicon, split_text
from csm_cli.generation.chunking import spoken_length as characters
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.types import Conversation, GenerationOptions, Turn

FRAME_RATE = 12.5  # Mimi's, per second
_CHARACTERS_PER_SECOND = 14.0  # about what people say


@dataclass(frozen=True)
class EstimateContext:
    """positions: the model's; options: flags, above the script's own; split: characters of a part, as in `RetryPolicy`.

    easy: beyond so many positions past turns leave; 0 for all there are.
    """

    positions: int
    options: GenerationOptions
    split: int = 0
    easy: int = 0


@dataclass(frozen=True)
class TurnEstimate:
    """What one turn takes. tokens: of its text; seconds: its length, estimated where it is to be spoken.

    heard: positions of all that is heard before it; parts: in which it is spoken; evicted: numbers of the turns that
    leave the window for it.
    """

    tokens: int
    seconds: float
    heard: int
    parts: int = 1
    evicted: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Of its text, its frames and the frame that ends each part."""
        return self.tokens + round(self.seconds * FRAME_RATE) + self.parts

    @property
    def window(self) -> int:
        """Positions in use when it has been spoken."""
        return self.heard + self.positions


def estimate_turns(
    talk: Conversation, prompt_builder: PromptBuilder, window: EstimateContext
) -> tuple[list[TurnEstimate], list[TurnEstimate]]:
    """What each turn of the context and each turn of the script takes.

    Raises:
        AudioUnreadable: a recording that is not there any more.
    """
    context: list[TurnEstimate] = []
    for turn in talk.context:
        cost = _cost(turn, prompt_builder, window, {})
        context.append(replace(cost, heard=sum(each.positions for each in context)))
    return context, list(_spoken(talk, prompt_builder, window, sum(each.positions for each in context)))


def _spoken(
    talk: Conversation, prompt_builder: PromptBuilder, window: EstimateContext, pinned: int
) -> Iterator[TurnEstimate]:
    past: list[tuple[int, int]] = []
    for number, turn in enumerate(talk.turns, 1):
        cap = window.options.over(turn.options).over(talk.defaults).max_duration
        cost = _cost(turn, prompt_builder, window, talk.lexicon, cap)
        evicted: list[int] = []
        while past and pinned + sum(size for _, size in past) + cost.positions > (window.easy or window.positions):
            evicted.append(past.pop(0)[0])
        heard = pinned + sum(size for _, size in past)
        yield replace(cost, heard=heard, evicted=tuple(evicted))
        past.append((number, cost.positions))


def _cost(
    turn: Turn,
    prompt_builder: PromptBuilder,
    window: EstimateContext,
    lexicon: Mapping[str, str],
    cap: float | None = None,
) -> TurnEstimate:
    whole = turn.recording or cap
    parts = split_text(turn.text, 0 if whole else window.split)
    words = parts if turn.recording else [apply_lexicon(part, lexicon) for part in parts]
    tokens = sum(len(prompt_builder.text_ids(turn.speaker, part)) for part in words)
    if turn.recording:
        start, end = turn.recording.start or 0.0, turn.recording.end
        return TurnEstimate(tokens, (probe(turn.recording.path).duration if end is None else end) - start, 0)
    seconds = characters(turn.text) / _CHARACTERS_PER_SECOND
    return TurnEstimate(tokens, min(seconds, cap) if cap else seconds, 0, len(parts))


def track_seconds(talk: Conversation, turns: Sequence[TurnEstimate]) -> float:
    """Seconds of the track, with its gaps and overlaps."""
    end = longest = 0.0
    for turn, cost in zip(talk.turns, turns, strict=True):
        end = max(0.0, end + turn.gap) + cost.seconds
        longest = max(longest, end)
    return longest + talk.tail
