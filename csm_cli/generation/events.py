"""What is told of conversations while they are spoken. No torch here."""

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
    from csm_cli.generation.concatenate import Segment
    from csm_cli.generation.take import Take


@dataclass(frozen=True)
class Utterance:
    """One turn as it came out.

    codes: int64 [T, K]; stop: "eos" (the model ended it), "cap" (cut at the longest duration), "silence" or "repeat"
    (fell silent, or stuck to one sound, and was ended there), "empty" (it said nothing) or "recorded" (the script
    brought the audio). fault: what is wrong with it, "" for nothing. takes: all there were, this is the best of them.
    seconds: time from the first prefill to the last sample. seed: with which it comes out like this again.
    pieces: the parts in which it was spoken; codes are theirs joined, stop is the worst of theirs. positions: the most
    the window held on the way. evicted: numbers of the turns that left it for this one; its own, if its first parts
    did. kept: by an earlier run, which ended it as `stop` says.
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


@dataclass(frozen=True)
class FrameProgress:
    """A frame of a turn was decoded: `frames` so far, of at most `limit` before its next part or its end."""

    conversation: Conversation
    turn: Turn
    frames: int
    limit: int


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """More of a turn's sound, float32 [N], where it was asked for as it is decoded; its `CorpusUtterance` follows."""

    conversation: Conversation
    turn: Turn
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class ConversationFailed:
    """A conversation that cannot go on: its turns so far came out, the rest will not."""

    conversation: Conversation
    error: CsmError


Event = FrameProgress | AudioChunk | Utterance | ConversationFailed
