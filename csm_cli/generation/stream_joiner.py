"""Joins the chunks of a long turn while they are decoded: the streaming counterpart of `take.concatenate`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from csm_cli.generation.chunking import SpeechPauses
from csm_cli.generation.events import Segment
from csm_cli.generation.take import (
    FADE_SECONDS,
    LEVEL_SECONDS,
    NO_PAUSES,
    RELATIVE_SILENCE_LEVEL,
    SILENCE_LEVEL,
    joint_samples,
    rms_levels,
)

Samples = NDArray[np.float32]


class StreamJoiner:
    """The audio of one turn, take by take, as it can be played.

    Silence is held back until sound follows: at a joint it is trimmed, the edges fade over 20 ms, and a natural pause
    follows. A turn of one take is not changed, and a take that stays silent can be replaced by another.

    samples: all that was returned so far. segments: of the takes that ended.
    """

    def __init__(self, rate: int, pauses: SpeechPauses = NO_PAUSES) -> None:
        self._rate, self._pauses = rate, pauses
        self._step, self._fade = round(LEVEL_SECONDS * rate), round(FADE_SECONDS * rate)
        self._returned: list[Samples] = []
        self._length = 0
        self.segments: list[Segment] = []
        self.start_take()

    def start_take(self) -> None:
        """Begins a take; what was held back of one that stayed silent is dropped."""
        self._pending = np.zeros(0, np.float32)  # held back
        self._peak = 0.0  # of the levels of this take
        self._start = self._length
        self._passed = 0  # samples of the take that were returned or trimmed
        self.audible = False  # whether something of the take was returned

    @property
    def samples(self) -> Samples:
        return np.concatenate((np.zeros(0, np.float32), *self._returned))

    def push(self, samples: Samples) -> Samples:
        """The next samples [N] of the take; returns those that can be played, up to the last sound."""
        self._pending = np.concatenate((self._pending, samples))
        levels = rms_levels(self._pending, self._step)
        self._peak = max(self._peak, float(levels.max(initial=0.0)))
        loud = np.flatnonzero(levels > max(SILENCE_LEVEL, RELATIVE_SILENCE_LEVEL * self._peak))
        if not len(loud):
            return self._return(0)
        end = int(loud[-1] + 1) * self._step
        if not self.audible and (self.segments or self._pauses.first):
            silence = np.zeros(self._silence(), np.float32)
            skipped = max(0, int(loud[0]) * self._step - self._fade)
            trimmed = self._pending[skipped:].copy()
            ramp = self._ramp(trimmed)
            trimmed[: len(ramp)] *= ramp
            self._pending = np.concatenate((silence, trimmed))
            self._passed += skipped - len(silence)
            self._start = self._length + len(silence)
            end += len(silence) - skipped
        self.audible = True
        return self._return(end)

    def _silence(self) -> int:
        """Samples of silence before the take."""
        if not self.segments:
            return joint_samples(self._pauses.first, "", self._rate)
        return joint_samples(self._pauses.after_chunk(len(self.segments) - 1), self.segments[-1].text, self._rate)

    def end_take(self, text: str, frames: int, length: int, last: bool) -> Samples:
        """Ends a take of so many frames, of which `length` samples count; returns the rest of its audio.

        last: nothing follows, so that the end is not changed.
        """
        if self.audible:
            left = max(0, length - self._passed)
            if last:
                returned = self._return(left)
            else:
                edge = self._pending[: min(left, self._fade)].copy()
                ramp = self._ramp(edge)
                edge[len(edge) - len(ramp) :] *= ramp[::-1]
                self._pending = edge
                returned = self._return(len(edge))
        else:
            returned = self._return(length if not self.segments and last else 0)
        self.segments.append(Segment(text, self._start / self._rate, self._length / self._rate, frames))
        if last and self._pauses.last:
            self._pending = np.zeros(round(self._pauses.last * self._rate), np.float32)
            returned = np.concatenate((returned, self._return(len(self._pending))))
        return returned

    def _return(self, count: int) -> Samples:
        returned, self._pending = self._pending[:count], self._pending[count:]
        self._length += len(returned)
        self._passed += len(returned)
        if len(returned):
            self._returned.append(returned)
        return returned

    def _ramp(self, samples: Samples) -> Samples:
        ramp: Samples = np.sin(np.linspace(0, np.pi / 2, min(self._fade, len(samples)), dtype=np.float32))
        return ramp
