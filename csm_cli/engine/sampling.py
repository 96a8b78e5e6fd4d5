"""From logits to codes. Randomness is an input: one uniform number per utterance, frame and codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FRAMES_PER_DRAW = 64


@dataclass(frozen=True)
class Sampling:
    """How one utterance is sampled. Temperature 0 is greedy; top_k 0 keeps every code."""

    temperature: float
    top_k: int
    depth_temperature: float
    depth_top_k: int
    seed: int
    max_frames: int


class Uniforms:
    """An utterance's own random numbers, drawn on the CPU from its seed whatever device decodes it."""

    def __init__(self, seed: int, codebooks: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._codebooks = codebooks
        self._drawn = torch.empty(0, codebooks)

    def frame(self, index: int) -> Tensor:
        """[K] numbers in [0, 1) for frame `index`; frames are asked for in order."""
        offset = index % FRAMES_PER_DRAW
        if offset == 0:
            self._drawn = torch.rand(FRAMES_PER_DRAW, self._codebooks, generator=self._generator)
        return self._drawn[offset]


@dataclass(frozen=True)
class Filter:
    """Temperature and top-k of every row, for one of the two stages.

    temperature: [B, 1]; widest: the largest k; beyond: [B, widest], what lies outside a row's own k, None if nothing.
    """

    temperature: Tensor
    widest: int
    beyond: Tensor | None

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, int]], codes: int, device: torch.device) -> Filter:
        """From (temperature, top_k) pairs; greedy is the top 1 at temperature 1."""
        ranks = [1 if not t else min(k or codes, codes) for t, k in pairs]
        widest = max(ranks)
        temperature = torch.tensor([[t or 1.0] for t, _ in pairs], device=device)
        beyond = torch.arange(widest) >= torch.tensor(ranks)[:, None]
        return cls(temperature, widest, beyond.to(device) if min(ranks) < widest else None)

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """[B, V] logits and [B, 1] uniforms to [B] codes: the inverse CDF over each row's top k."""
        values, ids = logits.float().topk(self.widest)  # [B, k], falling
        if self.widest == 1:
            return ids[:, 0]
        scaled = values / self.temperature
        if self.beyond is not None:
            scaled = scaled.masked_fill(self.beyond, float("-inf"))
        cdf = scaled.softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(cdf, uniform * cdf[:, -1:]).clamp(max=self.widest - 1)  # beyond: not finite
        return ids.gather(-1, chosen)[:, 0]
