"""Changes the tempo of speech without its pitch, chunk by chunk, by WSOLA.

Verhelst and Roelands, "An overlap-add technique based on waveform similarity (WSOLA)", ICASSP 1993.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

MIN_SPEED, MAX_SPEED = 0.25, 4.0
_WINDOW_SECONDS, _SEARCH_SECONDS = 0.04, 0.01


def change_tempo(samples: Samples, rate: int, speed: float) -> Samples:
    """Samples [N] at another speed: [round(N / speed)]; unchanged at 1."""
    if speed == 1:
        return samples
    changer, length = TempoChanger(rate, speed), round(len(samples) / speed)
    changed = np.concatenate((changer.push(samples), changer.finish()))[:length]
    return np.pad(changed, (0, length - len(changed)))


class TempoChanger:
    """speed: 2 halves the duration. At 1, samples pass unchanged."""

    def __init__(self, rate: int, speed: float) -> None:
        self._speed = speed
        self._window = 2 * round(_WINDOW_SECONDS * rate / 2)
        self._search = round(_SEARCH_SECONDS * rate)
        self._shape = np.hanning(self._window + 1)[:-1].astype(np.float32)
        self._input = np.zeros(0, np.float32)  # from `_offset` on
        self._offset = 0
        self._next = 0.0  # where the next window is expected in the input
        self._follow: int | None = None  # where the last window goes on
        self._tail = np.zeros(self._window // 2, np.float32)  # second half of the last window

    def push(self, samples: Samples) -> Samples:
        """What more samples [N] give."""
        if self._speed == 1:
            return samples
        self._input = np.concatenate((self._input, samples))
        return self._windows(self._offset + len(self._input))

    def finish(self) -> Samples:
        """The last samples."""
        if self._speed == 1:
            return np.zeros(0, np.float32)
        end = self._offset + len(self._input)
        self._input = np.pad(self._input, (0, 2 * (self._window + self._search)))
        last = self._windows(end + self._window + self._search, end)
        return np.concatenate((last, self._tail))

    def _windows(self, available: int, end: int | None = None) -> Samples:
        """Adds windows as long as the input reaches, and they begin before its end."""
        half, out = self._window // 2, [np.zeros(0, np.float32)]
        while round(self._next) + self._search + self._window <= available and (end is None or self._next < end):
            start = self._best_start(round(self._next))
            window = self._input[start - self._offset :][: self._window] * self._shape
            if self._follow is None:
                window[:half] = self._input[start - self._offset :][:half]  # no window before it fades out
            out.append(self._tail + window[:half])
            self._tail = window[half:]
            self._follow = start + half
            self._next += half * self._speed
            drop = max(0, min(self._follow, round(self._next) - self._search) - self._offset)
            self._input, self._offset = self._input[drop:], self._offset + drop
        return np.concatenate(out)

    def _best_start(self, expected: int) -> int:
        """The start near `expected` whose first half is most like what the last window goes on with."""
        if self._follow is None:
            return expected
        half = self._window // 2
        target = self._input[self._follow - self._offset :][:half]
        first = max(self._offset, expected - self._search)
        region = self._input[first - self._offset : expected + self._search + half - self._offset]
        if len(target) < half or len(region) < half:
            return expected
        products = np.correlate(region, target, "valid")
        squares = np.cumsum(np.concatenate(([0.0], np.square(region, dtype=np.float64))))
        energies = np.sqrt(np.maximum(squares[half:] - squares[:-half], 1e-9))
        return first + int(np.argmax(products / energies))
