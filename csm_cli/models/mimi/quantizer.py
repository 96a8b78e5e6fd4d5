"""Mimi's split residual vector quantizer: two chains of codebooks quantize one latent, their outputs are summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm_cli.models.mimi.layers import linear

if TYPE_CHECKING:
    from csm_cli.models.mimi.config import CodecConfig


class SplitQuantizer(nn.Module):
    """Latents [B, T, hidden] to codes [B, K, T] and back, for the first K codebooks of those the checkpoint holds."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.semantic = config.semantic
        self.semantic_residual_vector_quantizer = _ResidualQuantizer(config, config.semantic)
        self.acoustic_residual_vector_quantizer = _ResidualQuantizer(config, config.quantizers - config.semantic)

    def pack_weights(self) -> None:
        """Moves the loaded codebooks of each chain into one table, of which they become views."""
        self.semantic_residual_vector_quantizer.pack_weights()
        self.acoustic_residual_vector_quantizer.pack_weights()

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


class _ResidualQuantizer(nn.Module):
    """A chain of codebooks, each of which quantizes the residual of those before it."""

    def __init__(self, config: CodecConfig, codebooks: int) -> None:
        super().__init__()
        hidden, dim = config.transformer.hidden, config.codebook_dim
        self.layers = nn.ModuleList([nn.ModuleDict({"codebook": _Codebook(config)}) for _ in range(codebooks)])
        self.input_proj = nn.Conv1d(hidden, dim, 1, bias=False) if dim != hidden else nn.Identity()
        self.output_proj = nn.Conv1d(dim, hidden, 1, bias=False) if dim != hidden else nn.Identity()

    def pack_weights(self) -> None:
        codebooks = [layer.get_submodule("codebook") for layer in self.layers]
        self._tables = torch.stack([book.get_buffer("embed") for book in codebooks])  # [K, codes, D]
        for book, table in zip(codebooks, self._tables, strict=True):
            book.embed = table

    def encode(self, latents: Tensor, codebooks: int) -> list[Tensor]:
        residual = _project(self.input_proj, latents)  # [B, T, D]
        codes = []
        for table in self._tables[:codebooks]:
            nearest = torch.cdist(residual, table[None]).argmin(dim=-1)  # [B, T]
            residual = residual - F.embedding(nearest, table)
            codes.append(nearest)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        tables = self._tables[: codes.shape[1]]
        offsets = torch.arange(0, tables.shape[0] * tables.shape[1], tables.shape[1], device=codes.device)
        indices, table = codes.transpose(1, 2) + offsets, tables.flatten(0, 1)  # [B, T, K]
        if indices.device.type == "cpu":  # embedding_bag: sums that do not depend on the batch size; MPS may lack it
            bags = F.embedding_bag(indices.flatten(0, 1), table, mode="sum")
            latents = bags.view(*indices.shape[:2], table.shape[1])
        else:
            latents = F.embedding(indices, table).sum(dim=2)
        return _project(self.output_proj, latents)


def _project(projection: nn.Module, x: Tensor) -> Tensor:
    """A convolution of width 1 over [B, T, C]."""
    return linear(x, projection.weight[:, :, 0]) if isinstance(projection, nn.Conv1d) else x


class _Codebook(nn.Module):
    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.embed = nn.Buffer(torch.empty(config.codebook_size, config.codebook_dim))
