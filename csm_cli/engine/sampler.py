"""From logits to codes. Randomness is an input: one uniform number per request, frame and codebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from csm_cli.models.csm.kernels import kernels_for

FRAMES_PER_DRAW = 64

SampleFn = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Logits [B, V] and uniforms [B, 1] to codes [B] and their embeddings from a table [V, hidden]."""


class Uniforms:
    """The random numbers of one request, drawn on the CPU from its seed whatever device decodes it."""

    def __init__(self, seed: int, codebooks: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._codebooks = codebooks
        self._block = torch.empty(0, codebooks)

    def frame(self, index: int) -> Tensor:
        """[K] numbers in [0, 1) for frame `index`; frames must be requested in order."""
        offset = index % FRAMES_PER_DRAW
        if offset == 0:
            self._block = torch.rand(FRAMES_PER_DRAW, self._codebooks, generator=self._generator)
        return self._block[offset]


class Sampler:
    """Temperature and top-k of every row, for the backbone or the depth decoder, in static buffers.

    rank_bias: [rows, codes], added to the scores of a row's codes in falling order: 0 within the row's top-k, else
    minus infinity.
    """

    def __init__(self, rows: int, codebook_size: int, device: torch.device) -> None:
        self._codebook_size = codebook_size
        self._sample_top_k = kernels_for(device).sample_top_k
        self.temperature = torch.ones(rows, 1, device=device)
        self.rank_bias = torch.zeros(rows, codebook_size, device=device)

    def set(self, params: Sequence[tuple[float, int]]) -> int:
        """Stores (temperature, top_k) of the first rows and returns the largest k; greedy is top-1."""
        size = self._codebook_size
        top_k = torch.tensor([1 if not t else min(k or size, size) for t, k in params])
        excluded = torch.arange(size) >= top_k[:, None]
        self.temperature[: len(params)] = torch.tensor([[t or 1.0] for t, _ in params]).to(self.temperature)
        self.rank_bias[: len(params)] = torch.where(excluded, -math.inf, 0.0).to(self.rank_bias)
        return int(top_k.max())

    def bind(self, rows: int, top_k: int) -> SampleFn:
        """The sampling function of the first rows. top_k: the largest of theirs."""
        temperature, rank_bias = self.temperature[:rows], self.rank_bias[:rows, :top_k]
        return lambda logits, uniform, table: self._sample_top_k(logits, uniform, temperature, rank_bias, table)
