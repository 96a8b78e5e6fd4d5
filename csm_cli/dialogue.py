"""One conversation on its way through the engine: what the model has heard so far, and the turn it speaks next."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.engine import Request, Sampling
from csm_cli.errors import PromptTooLong
from csm_cli.takes import Brief, Take
from csm_cli.types import Conversation, Options, Turn

log = logging.getLogger(__name__)

# `--max-duration auto`: nobody speaks slower than this, and a turn may pause this long besides.
SLOWEST_CHARACTERS_PER_SECOND = 5.0
GRACE_SECONDS = 3.0
# Where the window leaves less than the automatic cap, a turn at this rate must still fit.
USUAL_CHARACTERS_PER_SECOND = 12.0


@dataclass(frozen=True)
class Window:
    """The model's window: positions in all, and frames per second of speech."""

    positions: int
    frame_rate: float

    def frames(self, seconds: float) -> int:
        """Whole frames in a duration, at least one."""
        return max(1, int(seconds * self.frame_rate + 1e-6))


@dataclass(frozen=True)
class Given:
    """Options below the turns' own: what the run and the script say, and what the checkpoint was published with."""

    base: Options
    published: Options


class Dialogue:
    """A conversation's prompt rows so far, its turn in hand and that turn's takes.

    started: when the turn's first take was.
    """

    def __init__(self, conversation: Conversation, given: Given, window: Window) -> None:
        self.conversation = conversation
        self.seed = given.base.seed if given.base.seed is not None else secrets.randbelow(2**31)
        self.started = 0.0
        self.takes: list[Take] = []
        self._given, self._window = given, window
        self._context: list[Tensor] | None = None
        self._past: list[Tensor] = []
        self._index = 0

    def begin(self, hear: Callable[[Turn], Tensor]) -> None:
        """Hears the context turns, once."""
        if self._context is None:
            self._context = [hear(turn) for turn in self.conversation.context]

    @property
    def turn(self) -> Turn | None:
        """The turn to be spoken now; None at the end."""
        turns = self.conversation.turns
        return turns[self._index] if self._index < len(turns) else None

    @property
    def turn_seed(self) -> int:
        """The seed of the next take: the turn's own or what follows from the conversation's, then one more each."""
        turn = self.turn
        own = turn.options.seed if turn else None
        return (own if own is not None else self.seed + self._index) + len(self.takes)

    def hear(self, rows: Tensor) -> None:
        """The turn in hand is over; `rows` are its text and frames as later turns hear them."""
        self._past.append(rows)
        self._index += 1
        self.takes = []

    def brief(self, watched: bool) -> Brief:
        """What the next take of the turn in hand is asked for."""
        turn = self.turn
        assert turn is not None
        return Brief(turn.text, self.turn_seed, bool(self._options().max_duration), watched)

    def request(self, text_rows: Tensor) -> Request:
        """The engine's request for the turn in hand, whose text is `text_rows`.

        Past turns leave, oldest first, where the window is full; context never does.

        Raises:
            PromptTooLong: context, text and longest duration do not fit the window.
        """
        options = self._options()
        limit, least = self._frames(options)
        rows = self._rows(text_rows)
        while len(rows) + least > self._window.positions and self._past:
            self._past.pop(0)
            log.warning("the window of %d positions is full: the oldest turn is forgotten", self._window.positions)
            rows = self._rows(text_rows)
        if (excess := len(rows) + least - self._window.positions) > 0:
            raise PromptTooLong(self._too_long(excess))
        limit = min(limit, self._window.positions - len(rows))
        self.started = self.started if self.takes else time.perf_counter()
        return Request(rows, _sampling(options, self.turn_seed, limit))

    def _options(self) -> Options:
        turn = self.turn
        assert turn is not None
        return turn.options.over(self._given.base).completed(self._given.published)

    def _frames(self, options: Options) -> tuple[int, int]:
        """The most frames the turn may take, and how many must fit the window."""
        if options.max_duration:
            frames = self._window.frames(options.max_duration)
            return frames, frames
        turn = self.turn
        assert turn is not None
        length = len(turn.text)
        longest = self._window.frames(GRACE_SECONDS + length / SLOWEST_CHARACTERS_PER_SECOND)
        return longest, self._window.frames(length / USUAL_CHARACTERS_PER_SECOND)

    def _rows(self, text_rows: Tensor) -> Tensor:
        return torch.cat((*(self._context or ()), *self._past, text_rows))

    def _too_long(self, excess: int) -> str:
        turn = self.turn
        assert turn is not None
        where = f'turn {self._index + 1} ("{turn.text[:30]}{"..." if len(turn.text) > 30 else ""}")'
        return (
            f"{where} is {excess} positions ({excess / self._window.frame_rate:.1f} s) too long for the model's window "
            f"of {self._window.positions}; shorten its text, its context or --max-duration"
        )


def _sampling(options: Options, seed: int, max_frames: int) -> Sampling:
    """The depth decoder follows the backbone where it has no options of its own."""
    temperature, top_k = options.temperature or 0.0, options.top_k or 0
    depth_temperature, depth_top_k = options.depth_temperature, options.depth_top_k
    return Sampling(
        temperature=temperature,
        top_k=top_k,
        depth_temperature=temperature if depth_temperature is None else depth_temperature,
        depth_top_k=top_k if depth_top_k is None else depth_top_k,
        seed=seed,
        max_frames=max_frames,
    )
