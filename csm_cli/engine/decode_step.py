"""One decode step and its static buffers: codebook 0 from the backbone, the others from the depth decoder.

The buffers never move, so that a graph captured over them can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.engine.sampler import SampleFn, Sampler
from csm_cli.models.csm.kv_cache import AttentionMetadata, DecodeSlots, KVCacheView, PrefillSlots
from csm_cli.models.csm.model import CsmModel

KV_BUCKET_STEP = 128
INVALID_CODE = -1


def kv_capacity(max_seq_len: int) -> int:
    """Positions of a row's cache: max_seq_len and one more, which idle rows of a full cache write; in whole buckets."""
    return -(-(max_seq_len + 1) // KV_BUCKET_STEP) * KV_BUCKET_STEP


@dataclass(frozen=True)
class DecodeShape:
    """What a decode step depends on besides tensor values: one graph or compilation per shape.

    rows: B. kv_bucket: cache positions attended to. top_k, depth_top_k: the largest of the rows'.
    """

    rows: int
    kv_bucket: int
    top_k: int
    depth_top_k: int


@dataclass(frozen=True)
class DecodeViews:
    """The parts of the buffers that steps of one shape use."""

    hidden: Tensor  # [B, hidden]
    codes: Tensor  # [B, K]
    uniforms: Sequence[Tensor]  # K of [B, 1]
    sample: SampleFn
    depth_sample: SampleFn
    slots: DecodeSlots
    backbone: Sequence[KVCacheView]  # one per layer
    depth: Sequence[AttentionMetadata]  # one per depth decoder step


class DecodeState:
    """Caches and buffers of `rows` rows: of each its last hidden state and its next position."""

    def __init__(self, model: CsmModel, rows: int) -> None:
        config, device = model.config, model.device
        self.max_seq_len = config.backbone.max_seq_len
        self.kv_capacity = kv_capacity(self.max_seq_len)
        self.backbone_cache = model.backbone.new_cache(rows, self.kv_capacity)
        self.depth_cache = model.depth.new_cache(rows, config.codebooks)
        self.hidden = torch.zeros(rows, config.backbone.hidden, dtype=model.dtype, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.uniforms = torch.zeros(rows, config.codebooks, device=device)
        self.codes = torch.zeros(rows, config.codebooks, dtype=torch.int64, device=device)
        self.sampler = Sampler(rows, config.codebook_size, device)
        self.depth_sampler = Sampler(rows, config.codebook_size, device)

    def views(self, model: CsmModel, shape: DecodeShape) -> DecodeViews:
        rows, codebooks = shape.rows, model.config.codebooks
        slots = DecodeSlots(self.positions[:rows], shape.kv_bucket)
        # The depth decoder's first two positions together, then each of the others alone.
        depth_slots = [PrefillSlots(0, rows, 0, 2), *(PrefillSlots(0, rows, n, n + 1) for n in range(2, codebooks))]
        return DecodeViews(
            hidden=self.hidden[:rows],
            codes=self.codes[:rows],
            uniforms=self.uniforms[:rows, :, None].unbind(1),
            sample=self.sampler.bind(rows, shape.top_k),
            depth_sample=self.depth_sampler.bind(rows, shape.depth_top_k),
            slots=slots,
            backbone=slots.views(self.backbone_cache),
            depth=[model.depth.metadata(each, each.views(self.depth_cache)) for each in depth_slots],
        )


def decode_step(model: CsmModel, state: DecodeState, views: DecodeViews) -> None:
    """Samples a frame from the backbone's last hidden state and feeds it back, all within `state`'s buffers.

    A frame that ends speech is written as the eos code in every codebook, which is its form in a later turn's context.
    A row whose logits are not finite is written as INVALID_CODE in every codebook. Nothing here waits for the device or
    branches on a computed value.
    """
    codes, invalid = sample_frame(model, views)
    ended = codes[:, :-1].eq(model.config.eos).all(-1, keepdim=True)
    codes.masked_fill_(ended, model.config.eos)
    metadata = model.backbone.metadata(views.slots, views.backbone)
    views.hidden.copy_(model.backbone.norm(model.backbone.forward_layers(model.embed_frames(codes), metadata)))
    views.codes.copy_(codes.masked_fill_(invalid, INVALID_CODE))
    views.slots.positions.add_(1).clamp_(max=state.max_seq_len)


def sample_frame(model: CsmModel, views: DecodeViews) -> tuple[Tensor, Tensor]:
    """Codes [B, K], one codebook after another, and whether each row's logits are not finite, [B, 1].

    Only the first and the last logits are checked: a depth decoder position attends to all before it.
    """
    logits = model.head(views.hidden)
    total = logits.sum(-1, keepdim=True, dtype=torch.float32)
    tables = (*model.depth_tables[1:], model.depth_tables[0][:, :0])  # no input follows the last code
    code, embedded = views.sample(logits, views.uniforms[0], model.depth_tables[0])
    x = torch.cat((model.projector(views.hidden), embedded), 1).view(-1, embedded.shape[1])  # two positions a row
    codes = [code]
    for head, table, uniform, metadata in zip(model.depth_heads, tables, views.uniforms[1:], views.depth, strict=True):
        x = model.depth.forward_layers(x, metadata)  # [B, depth hidden]; the first time [B * 2, depth hidden]
        logits = model.depth.apply_head(x[1::2] if len(codes) == 1 else x, head)
        code, x = views.depth_sample(logits, uniform, table)
        codes.append(code)
    invalid = total.add_(logits.sum(-1, keepdim=True)).mul_(0).ne(0)  # 0 times a finite number is 0
    return torch.cat([each[:, None] for each in codes], 1), invalid
