"""Events of a synthesis run. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from csm_cli.errors import CsmError
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from csm_cli.audio.io import Audio
    from csm_cli.generation.take import Take


@dataclass(frozen=True)
class Segment:
    """A chunk of a turn's text, its span in the turn's audio in seconds, and how many of the turn's frames it has."""

    text: str
    start: float
    end: float
    frames: int = 0


@dataclass(frozen=True)
class Utterance:
    """One finished turn.

    codes: int64 [T, K]; those of all segments in order.
    stop: "eos" (ended by the model), "cap" (reached the maximum duration), "silence" or "repeat" (ended early: it fell
        silent or repeated one frame), "empty" (no speech), or "recorded" (the script has a recording of it). Of
        several segments the worst counts.
    seed: generates the same turn again. seconds: from the first prefill to the last sample.
    fault: why the turn is unusable, "" if it is not. takes: all that were generated, the chosen ones included.
    peak_positions: the longest sequence in the context window. evicted: numbers of the turns that were dropped from it
        for this one; its own number if its first segments were.
    cached: reused from an earlier run, whose `stop` and `seed` are given.
    number: of the turn in its conversation, from 1.
    """

    conversation: Conversation
    turn: Turn
    codes: Tensor
    audio: Audio
    stop: str
    seed: int = 0
    seconds: float = 0.0
    fault: str = ""
    takes: tuple[Take, ...] = ()
    segments: tuple[Segment, ...] = ()
    peak_positions: int = 0
    evicted: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    cached: bool = False
    number: int = 0


@dataclass(frozen=True)
class FrameProgress:
    """A turn has `frames` frames now; `limit`: the most it can have by the end of its current segment."""

    conversation: Conversation
    turn: Turn
    frames: int
    limit: int
    number: int = 0


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """The next samples of a turn, float32 [N], if the retry policy asks for a stream; its `Utterance` follows."""

    conversation: Conversation
    turn: Turn
    samples: NDArray[np.float32]
    number: int = 0


@dataclass(frozen=True)
class ConversationFailed:
    """No further turn of the conversation follows. takes: of the turn that failed."""

    conversation: Conversation
    error: CsmError
    takes: tuple[Take, ...] = ()


Event = FrameProgress | AudioChunk | Utterance | ConversationFailed
