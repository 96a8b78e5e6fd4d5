"""From logits to codes. Randomness is an input: one uniform number per utterance, frame and codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.models.csm.kernels import kernels_for
from csm_cli.models.csm.kernels.reference import SampleTopK

FRAMES_PER_DRAW = 64


@dataclass(frozen=True)
class SamplingParams:
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


class Sampler:
    """Temperature and top-k of every row, for one of the two stages, in buffers that stay where they are.

    beyond: what is added to a row's likeliest codes, the nth to the nth: nothing within its own k.
    """

    def __init__(self, rows: int, codes: int, device: torch.device) -> None:
        self._codes = codes
        self._draw = kernels_for(device).draw
        self.temperature = torch.ones(rows, 1, device=device)
        self.beyond = torch.zeros(rows, codes, device=device)

    def set(self, pairs: Sequence[tuple[float, int]]) -> int:
        """Takes (temperature, top_k) pairs of the first rows and returns the largest k; greedy is the top 1."""
        ranks = torch.tensor([1 if not t else min(k or self._codes, self._codes) for t, k in pairs])
        beyond = torch.arange(self._codes) >= ranks[:, None]
        self.temperature[: len(pairs)] = torch.tensor([[t or 1.0] for t, _ in pairs]).to(self.temperature)
        self.beyond[: len(pairs)] = torch.where(beyond, -math.inf, 0.0).to(self.beyond)
        return int(ranks.max())

    def pick(self, rows: int, widest: int) -> SampleFn:
        return SampleFn(self.temperature[:rows], self.beyond[:rows, :widest], self._draw)


@dataclass(frozen=True)
class SampleFn:
    """A filter's part for some rows and the largest of their k. temperature: [B, 1]; beyond: [B, k]."""

    temperature: Tensor
    beyond: Tensor
    draw: SampleTopK

    def __call__(self, logits: Tensor, uniform: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """[B, V] logits and [B, 1] uniforms to [B] codes and their rows of a table: the inverse CDF over the top k."""
        return self.draw(logits, uniform, self.temperature, self.beyond, table)
