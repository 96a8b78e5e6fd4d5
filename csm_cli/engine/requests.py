"""What goes into the engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from csm_cli.engine.sampler import SamplingParams


@dataclass(frozen=True, eq=False)
class Request:
    """One utterance to decode. rows: its whole prompt, int64 [S, K + 1]: codes, then a text id; -1 where unused."""

    rows: Tensor
    sampling: SamplingParams


@dataclass(frozen=True)
class Frame:
    """One frame of one request. codes: [K] on the CPU; stop: why this is the last one, else None.

    A frame with stop "eos" is the end itself and one with "broken" has no codes: neither is part of the speech.
    "cap" is the last that was asked for.
    """

    request: Request
    codes: Tensor
    stop: str | None = None
