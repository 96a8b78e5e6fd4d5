"""One frame: codebook 0 from the backbone, the others from the depth decoder, then the backbone's step over them."""

from __future__ import annotations

import torch
from torch import Tensor

from csm_cli.engine.decode_state import DecodeState, DecodeViews
from csm_cli.models.csm import CsmModel

BROKEN = -1


def next_frame(model: CsmModel, state: DecodeState, views: DecodeViews) -> None:
    """Samples a frame from the backbone's last hidden state and feeds it back, all within `state`'s buffers.

    A frame that ends speech is written as the eos code in every codebook, which is how it stands in a later turn's
    context. A row whose numbers are no longer finite is written as BROKEN in every codebook. Nothing here waits for the
    device or depends on what it computes.
    """
    codes, broken = sample_frame(model, views)
    ended = codes[:, :-1].eq(model.config.eos).all(-1, keepdim=True)
    codes.masked_fill_(ended, model.config.eos)
    place = model.backbone.place(views.where, views.backbone)
    views.hidden.copy_(model.backbone.norm(model.backbone.run(model.embed_frames(codes), place)))
    views.codes.copy_(codes.masked_fill_(broken, BROKEN))
    views.where.at.add_(1).clamp_(max=state.last)


def sample_frame(model: CsmModel, views: DecodeViews) -> tuple[Tensor, Tensor]:
    """Codes [B, K], one codebook after another, and whether each row is no longer finite, [B, 1].

    The depth decoder's positions see all before them, so that its last logits tell of them all.
    """
    logits = model.head(views.hidden)
    total = logits.sum(-1, keepdim=True, dtype=torch.float32)
    tables = (*model.depth_tables[1:], model.depth_tables[0][:, :0])  # nothing comes after the last code
    code, embedded = views.pick(logits, views.uniforms[0], model.depth_tables[0])
    x = torch.cat((model.projector(views.hidden), embedded), 1).view(-1, embedded.shape[1])  # two positions a row
    codes = [code]
    for head, table, uniform, place in zip(model.depth_heads, tables, views.uniforms[1:], views.depth, strict=True):
        x = model.depth.run(x, place)  # [B, depth hidden], at first [B * 2, depth hidden]
        logits = model.depth.read(x[1::2] if len(codes) == 1 else x, head)
        code, x = views.depth_pick(logits, uniform, table)
        codes.append(code)
    broken = total.add_(logits.sum(-1, keepdim=True)).mul_(0).ne(0)  # nothing times a finite number is nothing
    return torch.cat([each[:, None] for each in codes], 1), broken
