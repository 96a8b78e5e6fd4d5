"""One frame: codebook 0 from the backbone, the others from the depth decoder, then the backbone's step over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.engine.sampling import Filter
from csm_cli.model import CsmModel, KvCache, Scatter, Span


@dataclass(frozen=True)
class Draw:
    """What a frame needs to be sampled: filters of both stages and uniforms [B, K]."""

    backbone: Filter
    depth: Filter
    uniforms: Tensor


@dataclass(frozen=True)
class Caches:
    backbone: KvCache
    depth: KvCache


def next_frame(model: CsmModel, caches: Caches, hidden: Tensor, place: Scatter, draw: Draw) -> tuple[Tensor, Tensor]:
    """Samples a frame from the backbone's last hidden state and feeds it back.

    hidden: [B, hidden]; returns codes [B, K] and the hidden state after them. A frame that ends speech comes back as
    the eos code in every codebook, which is how it stands in a later turn's context.
    """
    codes = sample_frame(model, caches.depth, hidden, draw)
    ended = (codes[:, :-1] == model.config.eos).all(-1, keepdim=True)
    codes = codes.masked_fill(ended, model.config.eos)
    embedded = model.embed_frames(codes)[:, None]
    return codes, model.backbone(embedded, caches.backbone, place)[:, 0]


def sample_frame(model: CsmModel, cache: KvCache, hidden: Tensor, draw: Draw) -> Tensor:
    """[B, hidden] to [B, K] codes, one codebook after another."""
    rows, vocab = len(hidden), model.config.vocab
    code = draw.backbone.pick(model.head(hidden), draw.uniforms[:, 0])
    codes = [code]
    x = torch.stack((model.projector(hidden), model.depth_table[code]), 1)  # [B, 2, depth hidden]
    end = 2
    for index, head in enumerate(model.depth_heads, start=1):
        x = model.depth(x, cache, Span(0, rows, end - x.shape[1], end))[:, -1]
        code = draw.depth.pick(head(x), draw.uniforms[:, index])
        codes.append(code)
        if index < len(model.depth_heads):
            x = model.depth_table[code + index * vocab][:, None]
            end += 1
    return torch.stack(codes, 1)
