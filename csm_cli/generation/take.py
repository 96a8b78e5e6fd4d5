"""A take is one try at a turn: when it has gone wrong on the way, what of it is kept, and whether that is any good."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csm_cli.models.mimi import ChunkDecoder, PendingChunk

# Decoded at a time: soon at first, for who listens; then as cheap for a frame as all at once. Streams and files have
# the same chunks, for sums over other numbers of frames are rounded otherwise: one step of 16 bits in a few samples.
FIRST_SECONDS, CHUNK_SECONDS = 0.32, 0.96
SILENCE_SECONDS = 2.0  # so much silence ends a take
PAUSE_SECONDS = 0.24  # so much of it stays
REPEAT_SECONDS = 0.96  # one sound, unchanged for so long, ends a take
# A frame is silent below either level: of full scale, or of the loudest frame so far (-54 dBFS, -40 dB).
SILENT, SILENT_BESIDE_LOUDEST = 2e-3, 1e-2
# Nobody speaks faster, letters and digits counted: a take shorter than that has lost some of its text.
FASTEST_LETTERS_PER_SECOND = 30.0
_WORST_LAST = ("eos", "silence", "cap", "repeat", "empty")


@dataclass(frozen=True)
class Transcription:
    """What a recognizer made of a take. error_rate: wrong, missing and added words per word of the text.

    run: most words in a row that are wrong.
    """

    text: str
    error_rate: float
    run: int


@dataclass(frozen=True, eq=False)
class Take:
    """codes: int64 [T, K]; samples: float32 [T * frame_samples]; fault: what is wrong with it, "" for nothing.

    stop: "eos", "cap", "silence", "repeat", or "empty" where nothing is left of it. part: of its turn, from 1.
    transcription: None where no recognizer was asked.
    """

    codes: Tensor
    samples: NDArray[np.float32]
    stop: str
    seed: int
    fault: str
    chunk_number: int = 1
    transcription: Transcription | None = None


@dataclass(frozen=True)
class TakeSpec:
    """What a take was asked for. capped: somebody named its longest duration, so that reaching it is no fault.

    watched: whether it ends when it has gone wrong, and is trimmed and judged. part: of its turn, from 1. streamed:
    whether somebody hears it on its way.
    """

    text: str
    seed: int
    capped: bool = False
    watched: bool = False
    chunk_number: int = 1
    streamed: bool = False


class TakeBuilder:
    """A take on its way: frames are added, and their sound follows in chunks.

    Where chunks are decoded beside the frame loop, each is heard when the next one begins. A take that should have
    ended by then ends there all the same: the frames made since are dropped.
    """

    def __init__(self, deck: ChunkDecoder, brief: TakeSpec) -> None:
        self._deck, self._codec, self._brief = deck, deck.codec, brief
        self._decoder = deck.codec.decoder()
        self._frames: list[Tensor] = []
        self._begun = 0
        self._due = chunk_frames(0, self._codec.frame_rate)  # frames after which the next chunk begins
        self._chunks: deque[PendingChunk] = deque()  # begun and not heard yet
        self._sound: list[NDArray[np.float32]] = []
        self._told = 0
        self._levels: list[float] = []
        self._same = 0
        self._most_alike = self._count(REPEAT_SECONDS)
        self._ended: str | None = None  # why, where frames were dropped

    def __len__(self) -> int:
        return len(self._frames)

    def add_frame(self, codes: Tensor) -> str | None:
        """Adds a frame [K]; returns why the take should end here, or where it was heard last, if it should."""
        repeated = bool(self._frames) and torch.equal(codes, self._frames[-1])
        self._same = self._same + 1 if repeated else 1
        self._frames.append(codes)
        if not self._stuck and len(self._frames) < self._due:
            return None
        at_once = self._stuck or self._brief.streamed or not self._deck.beside
        why = None if at_once else self._hear()
        if why:
            return why
        self._begin()
        return self._hear() if at_once else None

    def new_samples(self) -> NDArray[np.float32]:
        """The sound that was heard since this was last asked."""
        new, self._told = self._sound[self._told :], len(self._sound)
        return np.concatenate((np.zeros(0, np.float32), *new))

    def finish_frames(self) -> None:
        """No frame comes any more; what is left can be decoded beside that of others."""
        if self._begun < len(self._frames):
            self._begin(last=True)

    def finish(self, stop: str) -> Take:
        """The take, which ended for the reason `stop` unless it is heard to have ended before."""
        self.finish_frames()
        why = self._hear()
        stop = self._ended or (why if why and stop == "eos" else stop)
        keep = self._kept(stop) if self._brief.watched else len(self)
        codes = torch.stack(self._frames[:keep]) if keep else torch.empty(0, self._codec.codebooks, dtype=torch.int64)
        samples = np.concatenate((np.zeros(0, np.float32), *self._sound))[: keep * self._codec.frame_samples]
        fault = self._fault(stop, keep)
        return Take(codes, samples, stop if keep else "empty", self._brief.seed, fault, self._brief.chunk_number)

    def _begin(self, last: bool = False) -> None:
        self._chunks.append(self._deck.put(self._decoder, torch.stack(self._frames[self._begun :]), last))
        self._begun = len(self._frames)
        self._due = self._begun + chunk_frames(self._begun, self._codec.frame_rate)

    @property
    def _stuck(self) -> bool:
        return self._same >= self._most_alike

    def _hear(self) -> str | None:
        """Hears what was begun, up to where the take should have ended; returns why it should."""
        while self._chunks:
            heard = self._chunks.popleft()
            samples = heard.samples()
            self._sound.append(samples)
            frames = samples.reshape(len(heard.codes), -1)  # [T, frame_samples]
            self._levels += np.sqrt(np.square(frames).mean(axis=1)).tolist()
            if not heard.last and (why := self._wrong()):
                self._forget(why)
                return why
        return None

    def _wrong(self) -> str | None:
        """Why a take that was heard so far should end, if it should."""
        if not self._brief.watched:
            return None
        silent = self._silent(self._levels)
        if self._stuck and len(self._levels) == len(self._frames) and not silent:
            return "repeat"
        return "silence" if silent >= self._count(SILENCE_SECONDS) else None

    def _forget(self, why: str) -> None:
        """Drops the frames that were made after those heard."""
        if len(self._levels) < len(self._frames):
            self._ended = why
            self._chunks.clear()
            self._begun = len(self._levels)
            del self._frames[self._begun :]

    def _kept(self, stop: str) -> int:
        """How many frames are kept: the first of those that repeat, and a short pause of a silence that ended it."""
        if stop == "repeat":
            return len(self) - self._same + 1
        if stop == "cap" and self._brief.capped:
            return len(self)
        silent = self._silent(self._levels)
        if silent == len(self):
            return 0
        return len(self) - max(0, silent - self._count(PAUSE_SECONDS)) if stop == "silence" else len(self)

    def _fault(self, stop: str, keep: int) -> str:
        if not keep:
            return "came out silent" if self._frames else "came out empty"
        if not self._brief.watched or (stop == "cap" and self._brief.capped):
            return ""
        if stop == "cap":
            return f"had not ended after {self._seconds(keep):.1f} s"
        if stop == "repeat":
            return f"got stuck on one sound after {self._seconds(keep):.1f} s"
        spoken = self._seconds(keep - self._silent(self._levels[:keep]))
        letters = sum(char.isalnum() for char in self._brief.text)
        short = spoken < letters / FASTEST_LETTERS_PER_SECOND
        return f"broke off after {spoken:.1f} s" if short else ""

    def _silent(self, levels: Sequence[float]) -> int:
        """How many frames at the end are silent."""
        bound = max(SILENT, SILENT_BESIDE_LOUDEST * max(self._levels, default=0.0))
        return next((count for count, level in enumerate(reversed(levels)) if level > bound), len(levels))

    def _count(self, seconds: float) -> int:
        return _frames(seconds, self._codec.frame_rate)

    def _seconds(self, frames: int) -> float:
        return frames / self._codec.frame_rate


def chunk_frames(decoded: int, frame_rate: float) -> int:
    """How many frames are decoded together next, after `decoded` of a take: as many again, within bounds."""
    return min(max(decoded, _frames(FIRST_SECONDS, frame_rate)), _frames(CHUNK_SECONDS, frame_rate))


def _frames(seconds: float, frame_rate: float) -> int:
    return max(1, round(seconds * frame_rate))


def worst_stop(stops: Iterable[str]) -> str:
    """The least welcome of several reasons to stop."""
    return max(stops, key=_WORST_LAST.index)


def best_take(takes: Sequence[Take], frames: float | None = None) -> Take:
    """Of those without a fault the one with the fewest wrong words, then the one whose length is likeliest.

    Where all have one, that which went wrong least. frames: how long the speaker is expected to take; where that is
    not known, as long as the good takes do in the middle.
    """
    lengths = [len(take.codes) for take in takes if not take.fault] or [1]
    expected = frames or float(np.median(lengths))
    return min(takes, key=lambda take: _demerits(take, expected))


def _demerits(take: Take, frames: float) -> tuple[bool, int, float, float]:
    errors = take.transcription.error_rate if take.transcription else 0.0
    return (
        bool(take.fault),
        _WORST_LAST.index(take.stop),
        errors,
        abs(math.log(max(1, len(take.codes)) / max(1, frames))),
    )
