"""Engine input and output: sampling parameters, requests and frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from csm_cli.types import Sampling

_request_ids = count()


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Sampling):
    """How one utterance is sampled: with which seed, and for how many frames at most."""

    seed: int
    max_frames: int


@dataclass(frozen=True)
class Request:
    """One utterance to decode. Requests are equal if their ids are.

    prompt: int64 [S, K + 1], one line per position: K codes, then a text id; -1 where unused.
    """

    prompt: Tensor = field(compare=False)
    sampling: SamplingParams = field(compare=False)
    id: int = field(default_factory=_request_ids.__next__, init=False)


@dataclass(frozen=True)
class Frame:
    """One frame of one request. codes: [K] on the CPU.

    stop: None unless this is the last frame. "eos": the model ended the speech; this frame is not part of it.
    "cap": max_frames reached. "broken": the logits are not finite; the frame has no valid codes.
    """

    request: Request
    codes: Tensor
    stop: str | None = None
