"""Mimi's split residual vector quantizer: two chains of codebooks quantize one latent, their outputs are summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.matmul import linear

if TYPE_CHECKING:
    from csm_cli.models.mimi.config import CodecConfig


class SplitQuantizer(nn.Module):
    """Latents [B, T, hidden] to codes [B, K, T] and back, for the first K codebooks of those the checkpoint holds."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.semantic = config.semantic
        self.semantic_residual_vector_quantizer = _Chain(config, config.semantic)
        self.acoustic_residual_vector_quantizer = _Chain(config, config.quantizers - config.semantic)

    def stack(self) -> None:
        """Puts the codebooks of each chain, once they are loaded, into one table, of which they become parts."""
        self.semantic_residual_vector_quantizer.stack()
        self.acoustic_residual_vector_quantizer.stack()

    def encode(self, latents: Tensor, codebooks: int) -> Tensor:
        semantic = self.semantic_residual_vector_quantizer.encode(latents, min(codebooks, self.semantic))
        acoustic = self.acoustic_residual_vector_quantizer.encode(latents, max(0, codebooks - self.semantic))
        return torch.stack(semantic + acoustic, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, K, T] to [B, T, hidden]"""
        latents = self.semantic_residual_vector_quantizer.decode(codes[:, : self.semantic])
        if codes.shape[1] > self.semantic:
            latents = latents + self.acoustic_residual_vector_quantizer.decode(codes[:, self.semantic :])
        return latents


class _Chain(nn.Module):
    """Codebooks one after another, each for what is left over by those before it."""

    def __init__(self, config: CodecConfig, codebooks: int) -> None:
        super().__init__()
        hidden, dim = config.transformer.hidden, config.codebook_dim
        self.layers = nn.ModuleList([nn.ModuleDict({"codebook": _Codebook(config)}) for _ in range(codebooks)])
        self.input_proj = nn.Conv1d(hidden, dim, 1, bias=False) if dim != hidden else nn.Identity()
        self.output_proj = nn.Conv1d(dim, hidden, 1, bias=False) if dim != hidden else nn.Identity()

    def encode(self, latents: Tensor, codebooks: int) -> list[Tensor]:
        left = _projected(self.input_proj, latents)  # [B, T, D]
        codes = []
        for table in self._tables[:codebooks]:
            nearest = torch.cdist(left, table[None]).argmin(dim=-1)  # [B, T]
            left = left - F.embedding(nearest, table)
            codes.append(nearest)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        tables = self._tables[: codes.shape[1]]
        first = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=codes.device)
        found = codes.transpose(1, 2) + first  # [B, T, K]
        return _projected(self.output_proj, _sums(found, tables.flatten(0, 1)))

    def stack(self) -> None:
        codebooks = [layer.get_submodule("codebook") for layer in self.layers]
        self._tables = torch.stack([book.get_buffer("embed") for book in codebooks])  # [K, codes, D]
        for book, table in zip(codebooks, self._tables, strict=True):
            book.embed = table


def _sums(found: Tensor, table: Tensor) -> Tensor:
    """[B, T, D]: of rows of a table [N, D]. Bags, whose sums do not go by how many there are, MPS may not have."""
    if found.device.type != "cpu":
        return F.embedding(found, table).sum(dim=2)
    return F.embedding_bag(found.flatten(0, 1), table, mode="sum").view(*found.shape[:2], table.shape[1])


def _projected(project: nn.Module, x: Tensor) -> Tensor:
    """A convolution of width 1 over [B, T, C]."""
    return linear(x, project.weight[:, :, 0]) if isinstance(project, nn.Conv1d) else x


class _Codebook(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.embed = nn.Buffer(torch.empty(config.codes, config.codebook_dim))
