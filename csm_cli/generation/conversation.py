"""The state of one conversation during synthesis: its context window, and the turn that is generated next."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from csm_cli.engine import Request, SamplingParams
from csm_cli.errors import PromptTooLong
from csm_cli.generation.chunking import SpeechPauses, spell, split_speech, spoken_length
from csm_cli.generation.context_window import ContextWindow, PromptTurn, WindowLimits
from csm_cli.generation.stream_joiner import StreamJoiner
from csm_cli.generation.take import Take, TakeSpec, best_take
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn, resolve_options, turn_seed

# The automatic maximum duration: a turn spoken at this rate, or at half its speaker's own rate, and a grace period.
MIN_CHARS_PER_SECOND = 5.0
MIN_RELATIVE_RATE = 0.5
GRACE_SECONDS = 3.0
# The window must have space for a turn at this rate, or at its speaker's own.
TYPICAL_CHARS_PER_SECOND = 12.0


@dataclass(frozen=True)
class ResolvedDefaults:
    """Generation options besides those of a conversation: flags above them, the checkpoint's below."""

    flags: GenerationOptions
    checkpoint: GenerationOptions
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass
class TurnState:
    """The turn that is being generated, chunk by chunk.

    chunk_chars, language: as for `split_speech`. number: in the conversation, from 1. takes: of the current chunk;
    all_takes: of all chunks so far. chosen: the best take of each finished chunk. started: when its first prefill
    began, by time.perf_counter. peak_positions, evicted: as in `Utterance`. joiner: of its stream, if it has one.
    """

    turn: Turn
    number: int
    options: GenerationOptions
    chunk_chars: int
    language: str
    chosen: list[Take] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    all_takes: list[Take] = field(default_factory=list)
    started: float = 0.0
    peak_positions: int = 0
    evicted: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    joiner: StreamJoiner | None = None

    @cached_property
    def chunks(self) -> tuple[str, ...]:
        """The text in chunks; split when they are needed, which they are not for a turn whose speech exists."""
        return split_speech(self.turn.text, self.chunk_chars, self.language)

    @cached_property
    def pauses(self) -> SpeechPauses:
        """The pauses that the text asks for."""
        return SpeechPauses.of(self.turn.text, self.chunks)

    @property
    def chunk(self) -> str | None:
        """The current chunk of the text, as written; None when all are finished."""
        return self.chunks[len(self.chosen)] if len(self.chosen) < len(self.chunks) else None

    def add_take(self, take: Take) -> None:
        self.takes.append(take)
        self.all_takes.append(take)


class ConversationState:
    """A conversation and its current turn; `current` is None at the end."""

    def __init__(
        self,
        conversation: Conversation,
        defaults: ResolvedDefaults,
        limits: WindowLimits,
    ) -> None:
        self.conversation = conversation
        seed = defaults.flags.over(conversation.defaults).seed
        self.seed = secrets.randbelow(2**31) if seed is None else seed
        self._defaults = defaults
        self._window = ContextWindow(limits)
        self._known_speakers = {turn.speaker for turn in conversation.context}
        self._has_recordings = bool(conversation.context)
        self._context_added = False
        self.current: TurnState | None = None
        self._start_turn(1)

    def add_context(self, encode: Callable[[Turn], Tensor]) -> None:
        """Adds the context turns to the window, once; `encode` returns their prompt tokens [S, K + 1]."""
        if not self._context_added:
            for turn in self.conversation.context:
                self._window.add_context(PromptTurn(0, turn.speaker, turn.text, encode(turn)))
        self._context_added = True

    @property
    def retry_policy(self) -> RetryPolicy:
        return self._defaults.retry_policy

    @property
    def next_seed(self) -> int:
        """The seed of the next take: the turn's, plus one for each take before."""
        current = self.require_current()
        first = turn_seed(self._defaults.flags, current.turn, current.number - 1, self.seed)
        return first + len(current.all_takes)

    @property
    def chunk_text(self) -> str:
        """The current chunk as the model reads it."""
        return spell(self.require_current().chunk or "", self.conversation)

    def take_spec(self) -> TakeSpec:
        """The spec of the next take."""
        current, policy = self.require_current(), self._defaults.retry_policy
        return TakeSpec(
            text=self.chunk_text,
            seed=self.next_seed,
            capped=bool(current.options.max_duration),
            trim=policy.trim,
            chunk_number=len(current.chosen) + 1,
            stream=policy.stream,
        )

    def request(self, text_tokens: Tensor) -> Request:
        """The engine's request for the next take of the current chunk, with these tokens [S, K + 1].

        Evicts past turns if the window is full.

        Raises:
            PromptTooLong: context, text and maximum duration do not fit into the window.
        """
        current, limits = self.require_current(), self._window.limits
        max_frames, required = self._frame_limits(current, self.chunk_text)
        evicted = self._window.evict(len(text_tokens) + required, current.number)
        current.evicted += [number for number in evicted if number not in current.evicted]
        prompt = self._window.prompt(text_tokens)
        excess = len(prompt) + required - limits.positions
        if excess > 0:
            text = current.turn.text
            raise PromptTooLong(
                f'turn {current.number} ("{text[:30]}{"..." if len(text) > 30 else ""}") is {excess} positions '
                f"({excess / limits.frame_rate:.1f} s) too long for the model's context window of {limits.positions}; "
                "shorten its text, its context or --max-duration"
            )
        if not current.all_takes:
            current.started = time.perf_counter()
            self._warn_of_unknown_speaker(current)
        max_frames = min(max_frames, limits.positions - len(prompt))
        return Request(
            prompt, SamplingParams(**vars(current.options.sampling), seed=self.next_seed, max_frames=max_frames)
        )

    def best_take(self) -> Take:
        """The best take of the current chunk."""
        current = self.require_current()
        rate = self._window.speaking_rate(current.turn.speaker)
        if self.retry_policy.stream:
            return current.takes[-1]
        return best_take(
            current.takes, spoken_length(self.chunk_text) / rate * self._window.limits.frame_rate if rate else None
        )

    def accept_take(self, take: Take, tokens: Tensor) -> None:
        """Finishes the current chunk with this take; `tokens`: its text and frames [S, K + 1]."""
        current = self.require_current()
        self._window.add_turn(PromptTurn(current.number, current.turn.speaker, self.chunk_text, tokens))
        self._known_speakers.add(current.turn.speaker)
        current.chosen.append(take)
        current.takes = []

    def add_recorded(self, segments: Iterable[tuple[str, Tensor]], generated: bool = False) -> None:
        """Finishes the current turn, whose speech exists: each segment's text, and its prompt tokens [S, K + 1].

        generated: by an earlier run, as a turn with cached codes was too. Past turns are evicted as they were in that
        run, so that later turns get the same context again.
        """
        current, turn = self.require_current(), self.require_current().turn
        generated = generated or bool(turn.recording and turn.recording.codes_path)
        self._known_speakers.add(turn.speaker)
        self._has_recordings = self._has_recordings or not generated
        for text, tokens in segments:
            if generated:
                text_positions = int((tokens[:, -1] >= 0).sum())
                self._window.evict(text_positions + self._frame_limits(current, text)[1], current.number)
            self._window.add_turn(PromptTurn(current.number, turn.speaker, text, tokens))
        self.finish_turn()

    def finish_turn(self) -> None:
        """Goes on to the next turn."""
        self._start_turn(self.require_current().number + 1)

    def require_current(self) -> TurnState:
        assert self.current is not None
        return self.current

    def _start_turn(self, number: int) -> None:
        if number > len(self.conversation.turns):
            self.current = None
            return
        turn, defaults = self.conversation.turns[number - 1], self._defaults
        options = resolve_options(defaults.flags, turn, self.conversation.defaults, defaults.checkpoint)
        chunk_chars = 0 if options.max_duration or turn.recording else defaults.retry_policy.chunk_chars
        self.current = TurnState(turn, number, options, chunk_chars, self.conversation.language)

    def _warn_of_unknown_speaker(self, current: TurnState) -> None:
        speaker = current.turn.speaker
        if self._has_recordings and speaker not in self._known_speakers:
            numbers = ", ".join(map(str, sorted(self._known_speakers)))
            known = f"only speakers {numbers} have" if len(self._known_speakers) > 1 else f"only speaker {numbers} has"
            current.warnings.append(
                f"speaker {speaker} has no reference audio ({known}); the model picks a voice; "
                "add a context turn or a voice for this speaker"
            )

    def _frame_limits(self, current: TurnState, text: str) -> tuple[int, int]:
        """The maximum number of frames of a take of `text`, and how many must fit into the window."""
        limits = self._window.limits
        if current.options.max_duration:
            frames = limits.frames(current.options.max_duration)
            return frames, frames
        rate, characters = self._window.speaking_rate(current.turn.speaker), spoken_length(text)
        slowest = rate * MIN_RELATIVE_RATE if rate else MIN_CHARS_PER_SECOND
        max_frames = limits.frames(GRACE_SECONDS + characters / slowest)
        return max_frames, limits.frames(characters / (rate or TYPICAL_CHARS_PER_SECOND))
