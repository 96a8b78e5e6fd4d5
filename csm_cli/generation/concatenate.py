"""The parts of a turn, spoken one after another, as one sound without clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csm_cli.generation.take import SILENT, SILENT_BESIDE_LOUDEST, Take

SENTENCE_SECONDS, CLAUSE_SECONDS = 0.35, 0.15  # from the last sound of a part to the first of the next
FADE_SECONDS = 0.02
_EAR_SECONDS = 0.01  # sound is looked for in pieces of this length
_SENTENCE_ENDS = frozenset(".!?…。！？")  # noqa: RUF001
_CLOSING = "\"')]}»”’ "  # noqa: RUF001

Samples = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SpokenChunk:
    """A part of a turn, as written, and the take that was kept of it."""

    text: str
    take: Take


@dataclass(frozen=True)
class Segment:
    """A part of a turn, as written, where it lies in the turn's audio, in seconds, and its frames among the codes."""

    text: str
    start: float
    end: float
    frames: int = 0


def concatenate(parts: Sequence[SpokenChunk], rate: int) -> tuple[Samples, tuple[Segment, ...]]:
    """The parts' sound in one, and where each lies in it.

    A turn of one part is left as it is. At joints, what is silent is cut, the edges fade over 20 ms, and a pause
    follows as people make it.
    """
    sounds = [_trimmed(part.take.samples, rate, first=not at, last=part is parts[-1]) for at, part in enumerate(parts)]
    samples = np.zeros(0, np.float32)
    pieces: list[Segment] = []
    for part, sound in zip(parts, sounds, strict=True):
        if pieces:
            samples = np.concatenate((samples, np.zeros(_pause(pieces[-1].text, rate), np.float32)))
        start = len(samples) / rate
        samples = np.concatenate((samples, sound))
        pieces.append(Segment(part.text, start, len(samples) / rate, len(part.take.codes)))
    return samples, tuple(pieces)


def _pause(text: str, rate: int) -> int:
    """Samples of silence after a part; the fades at both sides of it are part of the pause."""
    ends = text.rstrip(_CLOSING)[-1:] in _SENTENCE_ENDS
    return round(((SENTENCE_SECONDS if ends else CLAUSE_SECONDS) - 2 * FADE_SECONDS) * rate)


def _trimmed(samples: Samples, rate: int, first: bool, last: bool) -> Samples:
    """From just before the first sound to just after the last, but for the turn's own edges."""
    fade = round(FADE_SECONDS * rate)
    start, end = _sounding(samples, round(_EAR_SECONDS * rate))
    start = 0 if first else max(0, start - fade)
    end = len(samples) if last else min(len(samples), end + fade)
    kept = samples[start:end].copy()
    ramp = np.sin(np.linspace(0, np.pi / 2, min(fade, len(kept)), dtype=np.float32))
    if not first:
        kept[: len(ramp)] *= ramp
    if not last:
        kept[len(kept) - len(ramp) :] *= ramp[::-1]
    return kept


def _sounding(samples: Samples, step: int) -> tuple[int, int]:
    """The first and the last sample that sound, in steps of `step`; all of them where none does."""
    whole = len(samples) // step
    levels = np.sqrt(np.square(samples[: whole * step]).reshape(whole, step).mean(axis=1))
    loud = np.flatnonzero(levels > max(SILENT, SILENT_BESIDE_LOUDEST * levels.max(initial=0.0)))
    return (int(loud[0]) * step, int(loud[-1] + 1) * step) if len(loud) else (0, len(samples))
