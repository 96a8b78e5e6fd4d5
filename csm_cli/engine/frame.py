"""One frame: codebook 0 from the backbone, the others from the depth decoder, then the backbone's step over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.engine.sampling import Filter
from csm_cli.model import CsmModel, Place, Span

BROKEN = -1


@dataclass(frozen=True)
class Draw:
    """What a frame needs to be sampled: filters of both stages and uniforms [B, K]."""

    backbone: Filter
    depth: Filter
    uniforms: Tensor


class Caches:
    """Both stacks' caches. The depth decoder's places are the same in every frame."""

    def __init__(self, model: CsmModel, rows: int, capacity: int) -> None:
        self.backbone = model.backbone.cache(rows, capacity)
        self._depth = model.depth.cache(rows, model.config.codebooks)
        self._stack = model.depth
        self._places: dict[int, list[Place]] = {}

    def depth_places(self, rows: int) -> list[Place]:
        """The first two positions of so many rows, then each of the others alone."""
        if rows not in self._places:
            codebooks = self._depth.keys.shape[3]
            spans = [Span(0, rows, 0, 2), *(Span(0, rows, at, at + 1) for at in range(2, codebooks))]
            self._places[rows] = [self._stack.place(self._depth, span) for span in spans]
        return self._places[rows]


def next_frame(model: CsmModel, caches: Caches, hidden: Tensor, place: Place, draw: Draw) -> tuple[Tensor, Tensor]:
    """Samples a frame from the backbone's last hidden state and feeds it back at `place`.

    hidden: [B, hidden]; returns codes [B, K] and the hidden state after them. A frame that ends speech comes back as
    the eos code in every codebook, which is how it stands in a later turn's context. A row whose numbers are no longer
    finite comes back as BROKEN in every codebook.
    """
    codes, sound = sample_frame(model, caches.depth_places(len(hidden)), hidden, draw)
    ended = (codes[:, :-1] == model.config.eos).all(-1, keepdim=True)
    codes = codes.masked_fill(ended, model.config.eos)
    return codes.masked_fill(~sound, BROKEN), model.backbone.run(model.embed_frames(codes), place)


def sample_frame(model: CsmModel, places: list[Place], hidden: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """[B, hidden] to [B, K] codes, one codebook after another, and whether each row was finite, [B, 1].

    The depth decoder's positions see all before them, so that its last logits tell of them all.
    """
    uniforms = draw.uniforms[:, :, None].unbind(1)
    logits = model.head(hidden)
    sound = logits.isfinite().all(-1, keepdim=True)
    codes = [draw.backbone.pick(logits, uniforms[0])]
    x = model.projector(hidden)
    for index, (head, table, place) in enumerate(zip(model.depth_heads, model.depth_tables, places, strict=True)):
        embedded = F.embedding(codes[-1], table)
        if index == 0:
            embedded = torch.stack((x, embedded), 1).flatten(0, 1)  # two positions of each row: [B * 2, depth hidden]
        x = model.depth.run(embedded, place)
        logits = head(x[place.length - 1 :: place.length])
        codes.append(draw.depth.pick(logits, uniforms[index + 1]))
    return torch.stack(codes, 1), sound & logits.isfinite().all(-1, keepdim=True)
