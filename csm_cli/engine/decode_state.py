"""The buffers a frame reads and writes. They never move, so that a graph captured over them can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.engine.sampler import SampleFn, Sampler
from csm_cli.models.csm import AttentionMetadata, CsmModel, DecodeSlots, KVCacheView, PrefillSlots

KV_BUCKET_STEP = 128


@dataclass(frozen=True)
class DecodeShape:
    """What a frame's work depends on besides numbers.

    rows: B. extent: positions looked at. top_k, depth_top_k: the largest of the rows'.
    """

    rows: int
    extent: int
    top_k: int
    depth_top_k: int


@dataclass(frozen=True)
class DecodeViews:
    """The parts of the buffers that frames of one shape work on."""

    hidden: Tensor  # [B, hidden]
    codes: Tensor  # [B, K]
    uniforms: Sequence[Tensor]  # K of [B, 1]
    pick: SampleFn
    depth_pick: SampleFn
    where: DecodeSlots
    backbone: Sequence[KVCacheView]
    depth: Sequence[AttentionMetadata]


def kv_capacity(positions: int) -> int:
    """Positions of a row's cache: one more than the window, where idle rows of a full cache write, in whole steps."""
    return -(-(positions + 1) // KV_BUCKET_STEP) * KV_BUCKET_STEP


class DecodeState:
    """Caches and buffers of `rows` rows. Row B has its last hidden state, and its next position `at`."""

    def __init__(self, model: CsmModel, rows: int) -> None:
        config, device = model.config, model.device
        self.last = config.backbone.positions
        self.capacity = kv_capacity(self.last)
        self.backbone = model.backbone.cache(rows, self.capacity)
        self.depth = model.depth.cache(rows, config.codebooks)
        self.hidden = torch.zeros(rows, config.backbone.hidden, dtype=model.dtype, device=device)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(rows, config.codebooks, device=device)
        self.codes = torch.zeros(rows, config.codebooks, dtype=torch.int64, device=device)
        self.filter, self.depth_filter = (Sampler(rows, config.codes, device) for _ in range(2))

    def views(self, model: CsmModel, shape: DecodeShape) -> DecodeViews:
        rows, codebooks = shape.rows, model.config.codebooks
        where = DecodeSlots(self.at[:rows], shape.extent)
        # The depth decoder's first two positions together, then each of the others alone.
        spans = [PrefillSlots(0, rows, 0, 2), *(PrefillSlots(0, rows, at, at + 1) for at in range(2, codebooks))]
        return DecodeViews(
            hidden=self.hidden[:rows],
            codes=self.codes[:rows],
            uniforms=self.uniforms[:rows, :, None].unbind(1),
            pick=self.filter.pick(rows, shape.top_k),
            depth_pick=self.depth_filter.pick(rows, shape.depth_top_k),
            where=where,
            backbone=where.views(self.backbone),
            depth=[model.depth.place(span, span.views(self.depth)) for span in spans],
        )
