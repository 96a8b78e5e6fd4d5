"""One conversation on its way through the engine: what the model has heard so far, and the turn it speaks next."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from csm_cli.engine import Request, SamplingParams
from csm_cli.errors import PromptTooLong
from csm_cli.generation.chunking import apply_lexicon, split_text, spoken_length
from csm_cli.generation.concatenate import SpokenChunk
from csm_cli.generation.context_window import ContextWindow, PromptTurn, WindowLimits
from csm_cli.generation.take import Take, TakeSpec, best_take
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn, resolve_options, turn_seed

# `--max-duration auto`: nobody speaks slower than this, or than half as fast as usual for them, and a turn may pause
# this long besides.
SLOWEST_CHARACTERS_PER_SECOND = 5.0
SLOWEST_OF_USUAL = 0.5
GRACE_SECONDS = 3.0
# Where the window leaves less than the automatic cap, a turn at this rate must still fit.
USUAL_CHARACTERS_PER_SECOND = 12.0


@dataclass(frozen=True)
class ResolvedDefaults:
    """Generation options besides those of a conversation: flags above them, the checkpoint's below."""

    flags: GenerationOptions
    checkpoint: GenerationOptions
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass
class TurnState:
    """The turn in hand. parts: what is spoken of it at once, each with its own takes; said: those that are done.

    takes: of the part in hand; tried: of the parts before it. started: when the first take was. positions: the most
    the window held. evicted: turns that left it; a turn's own number, where it is too long for it.
    """

    turn: Turn
    options: GenerationOptions
    parts: tuple[str, ...]
    said: list[SpokenChunk] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    tried: list[Take] = field(default_factory=list)
    started: float = 0.0
    positions: int = 0
    evicted: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def part(self) -> str | None:
        """What is spoken now, as written; None at the end."""
        return self.parts[len(self.said)] if len(self.said) < len(self.parts) else None


class ConversationState:
    """A conversation's turns so far and its turn in hand, None at the end."""

    def __init__(self, conversation: Conversation, given: ResolvedDefaults, window: WindowLimits) -> None:
        self.conversation = conversation
        seed = given.flags.over(conversation.defaults).seed
        self.seed = secrets.randbelow(2**31) if seed is None else seed
        self._given = given
        self._memory = ContextWindow(window)
        self._voices = {turn.speaker for turn in conversation.context}
        self._given_voices = bool(conversation.context)
        self._begun = False
        self._index = 0
        self.hand = self._take_up()

    def begin(self, hear: Callable[[Turn], Tensor]) -> None:
        """Hears the context turns, once."""
        if not self._begun:
            for turn in self.conversation.context:
                self._memory.pin(PromptTurn(0, turn.speaker, turn.text, hear(turn)))
        self._begun = True

    @property
    def next_seed(self) -> int:
        """The seed of the next take: the turn's, plus one for each take before."""
        hand = self._in_hand
        first = turn_seed(self._given.flags, hand.turn, self._index, self.seed)
        return first + len(hand.tried) + len(hand.takes)

    @property
    def words(self) -> str:
        """The part in hand as it is spelled for the model."""
        return self._spelled(self._in_hand.part or "")

    def skip(self, parts: Iterable[tuple[str, Tensor]]) -> None:
        """The turn in hand was recorded: the text of each of its parts, and the rows of that and its frames.

        What left the window for a turn that an earlier run has spoken leaves it here too, so that later turns hear as
        much of the past as they did then.
        """
        hand, turn = self._in_hand, self._in_hand.turn
        kept = bool(turn.recording and turn.recording.codes_path)
        self._voices.add(turn.speaker)
        self._given_voices = self._given_voices or not kept
        for text, rows in parts:
            if kept:
                asked = int((rows[:, -1] >= 0).sum()) + self._frames(hand, text)[1]
                self._memory.make_room(asked, self._index + 1)
            self._memory.add(PromptTurn(self._index + 1, turn.speaker, text, rows))
        self.close()

    def keep(self, said: SpokenChunk, rows: Tensor) -> None:
        """A part is spoken; `rows` are its text and frames as later parts and turns hear them."""
        hand = self._in_hand
        self._memory.add(PromptTurn(self._index + 1, hand.turn.speaker, self.words, rows))
        self._voices.add(hand.turn.speaker)
        hand.said.append(said)
        hand.tried += hand.takes
        hand.takes = []

    def close(self) -> None:
        """The turn in hand is over; the next is taken up."""
        self._index += 1
        self.hand = self._take_up()

    def brief(self) -> TakeSpec:
        """What the next take is asked for."""
        hand = self._in_hand
        capped = bool(hand.options.max_duration)
        retry_policy, part = self._given.retry_policy, len(hand.said) + 1
        return TakeSpec(self.words, self.next_seed, capped, retry_policy.trim, part, retry_policy.stream)

    def best(self) -> Take:
        """The best take of the part in hand."""
        hand, usual = self._in_hand, self._memory.rate(self._in_hand.turn.speaker)
        expected = spoken_length(self.words) / usual * self._memory.window.frame_rate if usual else None
        return best_take(hand.takes, expected)

    def request(self, text_rows: Tensor) -> Request:
        """The engine's request for the part in hand, whose text is `text_rows`.

        Past turns leave, oldest first, where the window is full; context never does.

        Raises:
            PromptTooLong: context, text and longest duration do not fit the window.
        """
        hand, window = self._in_hand, self._memory.window
        limit, least = self._frames(hand, self.words)
        gone = self._memory.make_room(len(text_rows) + least, self._index + 1)
        hand.evicted += [turn for turn in gone if turn not in hand.evicted]
        rows = self._memory.prompt(text_rows)
        if (excess := len(rows) + least - window.positions) > 0:
            raise PromptTooLong(self._too_long(excess))
        if not (hand.takes or hand.tried):
            hand.started = time.perf_counter()
            self._introduce(hand)
        limit = min(limit, window.positions - len(rows))
        return Request(rows, SamplingParams(*hand.options.sampling, self.next_seed, limit))

    @property
    def _in_hand(self) -> TurnState:
        assert self.hand is not None
        return self.hand

    def _take_up(self) -> TurnState | None:
        turns = self.conversation.turns
        if self._index == len(turns):
            return None
        turn = turns[self._index]
        options = resolve_options(self._given.flags, turn, self.conversation.defaults, self._given.checkpoint)
        most = 0 if options.max_duration or turn.recording else self._given.retry_policy.chunk_chars
        return TurnState(turn, options, split_text(turn.text, most))

    def _spelled(self, text: str) -> str:
        return apply_lexicon(text, self.conversation.lexicon)

    def _introduce(self, hand: TurnState) -> None:
        """Warns where recordings were heard, but none of this speaker, who has said nothing yet either."""
        speaker = hand.turn.speaker
        if self._given_voices and speaker not in self._voices:
            known = ", ".join(map(str, sorted(self._voices)))
            hand.warnings.append(
                f"speaker {speaker} is not among those heard before ({known}) and gets a voice of the model's choice; "
                "a context turn of theirs, or a voice, gives them their own"
            )

    def _frames(self, hand: TurnState, words: str) -> tuple[int, int]:
        """The most frames a take of `words` may have, and how many must fit the window."""
        window = self._memory.window
        if hand.options.max_duration:
            frames = window.frames(hand.options.max_duration)
            return frames, frames
        usual, characters = self._memory.rate(hand.turn.speaker), spoken_length(words)
        slowest = usual * SLOWEST_OF_USUAL if usual else SLOWEST_CHARACTERS_PER_SECOND
        longest = window.frames(GRACE_SECONDS + characters / slowest)
        return longest, window.frames(characters / (usual or USUAL_CHARACTERS_PER_SECOND))

    def _too_long(self, excess: int) -> str:
        text, window = self._in_hand.turn.text, self._memory.window
        where = f'turn {self._index + 1} ("{text[:30]}{"..." if len(text) > 30 else ""}")'
        return (
            f"{where} is {excess} positions ({excess / window.frame_rate:.1f} s) too long for the model's window "
            f"of {window.positions}; shorten its text, its context or --max-duration"
        )
