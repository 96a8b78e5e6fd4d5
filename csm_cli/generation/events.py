"""Events of a synthesis run, and the track that finished utterances make. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from csm_cli import __version__
from csm_cli.errors import CsmError
from csm_cli.report import format_ranges
from csm_cli.types import Conversation, TimedWord, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from csm_cli.audio.io import Audio, Tags
    from csm_cli.audio.mix import Track
    from csm_cli.audio.subtitles import Cue
    from csm_cli.generation.take import Take


class ModelIdentity(Protocol):
    """What records and tags say of a model: a `Checkpoint`, or what a finished track remembers of one.

    revision: the commit on Hugging Face, None for a local one. positions, soft_limit: of its context.
    """

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def positions(self) -> int: ...
    @property
    def soft_limit(self) -> int: ...


@dataclass(frozen=True)
class Segment:
    """A chunk of a turn's text, its span in the turn's audio in seconds, and how many of the turn's frames it has.

    words: with their times in the turn's audio, where they were asked for.
    """

    text: str
    start: float
    end: float
    frames: int = 0
    words: tuple[TimedWord, ...] = ()

    def moved(self, offset: float = 0.0, speed: float = 1.0) -> Segment:
        """With other times: at a speed, and then `offset` seconds later."""
        words = (replace(each, start=offset + each.start / speed, end=offset + each.end / speed) for each in self.words)
        return replace(self, start=offset + self.start / speed, end=offset + self.end / speed, words=tuple(words))


@dataclass(frozen=True)
class Utterance:
    """One finished turn.

    codes: int64 [T, K]; those of all segments in order.
    stop: "eos" (ended by the model), "cap" (reached the maximum duration), "silence" or "repeat" (ended early: it fell
        silent or repeated one frame), "empty" (no speech), or "recorded" (the script has a recording of it). Of
        several segments the worst counts.
    seed: generates the same turn again. seconds: from the first prefill to the last sample.
    fault: why the turn is unusable, "" if it is not. takes: all that were generated, the chosen ones included; chosen:
        the index among them of the take of each segment.
    peak_positions: the longest sequence in the context window. evicted: numbers of the turns that were dropped from it
        for this one; its own number if its first segments were.
    cached: reused from an earlier run, whose `stop` and `seed` are given.
    number: of the turn in its conversation, from 1.
    """

    conversation: Conversation
    turn: Turn
    codes: Tensor | NDArray[np.int64]
    audio: Audio
    stop: str
    seed: int = 0
    seconds: float = 0.0
    fault: str = ""
    takes: tuple[Take, ...] = ()
    chosen: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    peak_positions: int = 0
    evicted: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    cached: bool = False
    number: int = 0

    @property
    def track_segments(self) -> tuple[Segment, ...]:
        """The segments as they are in the track: at the turn's speed."""
        return tuple(each.moved(speed=self.turn.speed) for each in self.segments)


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


def mix_utterances(utterances: Sequence[Utterance], tail: float = 0.0, loudness: float | None = None) -> Track:
    """One track with the gaps, gains and speeds of the turns; `tail` and `loudness` as in `Conversation`."""
    from csm_cli.audio.mix import TrackClip, mix
    from csm_cli.audio.tempo import change_tempo

    rate = utterances[0].audio.rate
    clips = [
        TrackClip(
            change_tempo(each.audio.samples, rate, each.turn.speed), each.turn.gap, each.turn.gain, each.turn.label
        )
        for each in utterances
    ]
    return mix(clips, rate, tail, loudness)


def utterance_cues(track: Track, utterances: Sequence[Utterance]) -> list[Cue]:
    """The subtitles of a track: a cue for each segment of its turns."""
    from csm_cli.audio.subtitles import Cue

    cues = []
    for span, each in zip(track.spans, utterances, strict=True):
        for segment in each.track_segments or (Segment(each.turn.text, 0.0, span.end - span.start),):
            placed = segment.moved(span.start)
            cues.append(Cue(placed.start, placed.end, each.turn.label, placed.text, placed.words))
    return cues


def audio_tags(utterances: Sequence[Utterance], model: ModelIdentity, title: str = "") -> Tags:
    """The metadata of an audio file: that it is synthetic, the model and the seeds."""
    from csm_cli.audio.io import Tags

    synthetic = [each for each in utterances if each.stop != "recorded"]
    # only the last part of a local path: files are shared, and paths are private
    name = f"{model.name} at {model.revision}" if model.revision else Path(model.name).name
    comment = f"synthetic speech; model: {name}; seed: {format_ranges(each.seed for each in synthetic)}"
    if not synthetic:
        comment = "recordings; no speech in this file was synthesized"
    elif len(synthetic) < len(utterances):
        comment += f"; {len(utterances) - len(synthetic)} of {len(utterances)} turns are recordings"
    return Tags(f"csm-cli {__version__}", comment, title)
