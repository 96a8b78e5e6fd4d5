"""Training of Mimi's split residual quantizer: moving averages, k-means start, revival of dead codes.

Mimi's modules only look codes up; here their buffers (`embed_sum`, `cluster_usage`) are learned, and gradients
pass straight through. Code 0 of codebook 0 is kept out of reach, so that a zero there can mean the end of speech:
dimension 0 of the semantic space carries nothing but its distance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import MimiModel

_DEAD = 0.02  # of the mean usage
_MAX_LATENT_SQUARE, _MAX_VECTOR_SQUARE = 25.0, 2.0
_ACOUSTIC_COMMITMENT = 10.0  # beside the semantic one: acoustic vectors are smaller
_REVIVED = 0.5  # usage of a code that was moved, of the mean
_FAR = 1000.0


def reserve_code_zero(model: MimiModel) -> None:
    """Take dimension 0 of the semantic space out of use, on the way in and out."""
    semantic = model.quantizer.semantic_residual_vector_quantizer
    with torch.no_grad():
        semantic.input_proj.weight[0] = 0.0
        semantic.output_proj.weight[:, 0] = 0.0


class QuantizerTrainer:
    """Quantizes latents [B, C, T] through the two chains of `model.quantizer`, and learns their codebooks.

    decay: of the moving averages, a step; with few frames a step it must be near 1, or rare codes forget.
    """

    def __init__(self, model: MimiModel, decay: float = 0.99) -> None:
        self._decay = decay
        quantizer = model.quantizer
        self.semantic = quantizer.semantic_residual_vector_quantizer
        self.acoustic = quantizer.acoustic_residual_vector_quantizer

    def bypass(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(latents as if quantized without error [B, C, T], semantic vectors [B, D, T])."""
        semantic = self.semantic.input_proj(latents)
        acoustic = self.acoustic.input_proj(latents)
        return self.semantic.output_proj(semantic) + self.acoustic.output_proj(acoustic), semantic

    def __call__(self, latents: Tensor, depths: Tensor, bypassed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes with the semantic and the first `depths` [B] acoustic codebooks, and update them all.

        Rows `bypassed` [B] reach the decoder without rounding (Moshi, section 3.3.3). Returns (latents [B, C, T],
        rounded semantic vectors [B, D, T], commitment loss).
        """
        ones = torch.ones_like(depths)
        near = _quantize(self.semantic, self.semantic.input_proj(latents), ones, 1, self._decay)
        far = _quantize(self.acoustic, self.acoustic.input_proj(latents), depths, 0, self._decay)
        chosen = [torch.where(bypassed[:, None, None], each.inputs, each.rounded) for each in (near, far)]
        output = self.semantic.output_proj(chosen[0]) + self.acoustic.output_proj(chosen[1])
        return output, near.rounded, near.commitment + _ACOUSTIC_COMMITMENT * far.commitment

    def excess_size(self, latents: Tensor) -> Tensor:
        """How far the mean squares of latents [B, C, T] and acoustic vectors exceed their limits, over all dimensions.

        Nothing else bounds them: straight-through gradients do not feel the size of what they round. Without this, one
        direction grew to a mean of 1,500 beside a spread of 50, the first acoustic codebook described nothing else, and
        moving averages of codebooks and weights could not follow it (docs/voice-recipe.md).
        """
        vectors = self.acoustic.input_proj(latents)
        parts = ((latents, _MAX_LATENT_SQUARE), (vectors, _MAX_VECTOR_SQUARE))
        return torch.stack([F.relu(each.pow(2).mean(dim=(0, 2)) - limit).sum() for each, limit in parts]).sum()

    @torch.no_grad()
    def start(self, latents: Tensor, iterations: int = 12) -> None:
        """Sets every codebook by k-means on latents [N, C], chain after chain."""
        for chain, first in ((self.semantic, 1), (self.acoustic, 0)):
            residual = F.linear(latents, chain.input_proj.weight[..., 0])
            for layer in chain.layers:
                book = layer.codebook
                centers = _kmeans(residual, book.embed_sum.shape[0] - first, iterations)
                book.embed_sum[first:] = centers
                book.cluster_usage.fill_(1.0)
                residual = residual - centers[torch.cdist(residual, centers).argmin(dim=-1)]
        self.seal()

    @torch.no_grad()
    def seal(self) -> None:
        """Make the codebooks what a checkpoint stores: plain centers with usage 1, code 0 of codebook 0 far away."""
        for chain in (self.semantic, self.acoustic):
            for layer in chain.layers:
                book = layer.codebook
                book.embed_sum.copy_(_embed(book))
                book.cluster_usage.fill_(1.0)
                book._embed = None
        zero = self.semantic.layers[0].codebook.embed_sum[0]
        zero.zero_()
        zero[0] = _FAR


class _Quantized(NamedTuple):
    """inputs and their straight-through rounding [B, D, T], and the commitment loss."""

    inputs: Tensor
    rounded: Tensor
    commitment: Tensor


def _quantize(chain: Any, inputs: Tensor, depths: Tensor, first_code: int, decay: float) -> _Quantized:
    """Residual quantization of [B, D, T] by the first `depths` [B] codebooks of a chain; all are updated."""
    vectors = inputs.transpose(1, 2)
    residual = vectors.detach().flatten(0, 1)
    total = torch.zeros_like(residual)
    selected = torch.zeros_like(residual)
    depth = depths.repeat_interleave(vectors.shape[1])[:, None]
    for index, layer in enumerate(chain.layers):
        embed = _embed(layer.codebook)[first_code:]
        codes = torch.cdist(residual, embed).argmin(dim=-1)
        _update(layer.codebook, residual, codes, first_code, decay)
        residual = residual - embed[codes]
        total = total + embed[codes]
        selected = torch.where(index < depth, total, selected)
    straight = vectors + (selected.view_as(vectors) - vectors).detach()
    return _Quantized(inputs, straight.transpose(1, 2), F.mse_loss(vectors, total.view_as(vectors)))


def _embed(book: Any) -> Tensor:
    centers: Tensor = book.embed_sum / book.cluster_usage.clamp(min=book.epsilon)[:, None]
    return centers


@torch.no_grad()
def _update(book: Any, vectors: Tensor, codes: Tensor, first: int, decay: float) -> None:
    """One step of the moving averages from vectors [N, D]; a code nobody chose for long moves to a random vector."""
    usage, sums = book.cluster_usage[first:], book.embed_sum[first:]
    counts = torch.zeros_like(usage).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
    usage.mul_(decay).add_(counts, alpha=1 - decay)
    sums.mul_(decay).add_(torch.zeros_like(sums).index_add_(0, codes, vectors), alpha=1 - decay)
    average = len(vectors) / len(usage)
    dead = usage < _DEAD * average
    if dead.any():
        picks = vectors[torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)]
        usage[dead] = _REVIVED * average
        sums[dead] = picks * _REVIVED * average


def _kmeans(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Lloyd's algorithm on [N, D], empty clusters refilled at random: centers [count, D]."""
    picks = torch.randperm(len(vectors), device=vectors.device)[:count]
    centers = vectors[picks].clone()
    for _ in range(iterations):
        codes = torch.cdist(vectors, centers).argmin(dim=-1)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, codes, vectors)
        empty = counts == 0
        centers = sums / counts.clamp(min=1)[:, None]
        centers[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), device=vectors.device)]
    return centers
