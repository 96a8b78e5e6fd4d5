"""One frame: codebook 0 from the backbone, the others from the depth decoder, then the backbone's step over them."""

from __future__ import annotations

import torch
from torch import Tensor

from csm_cli.engine.state import State, Views
from csm_cli.model import CsmModel

BROKEN = -1


def next_frame(model: CsmModel, state: State, views: Views) -> None:
    """Samples a frame from the backbone's last hidden state and feeds it back, all within `state`'s buffers.

    A frame that ends speech is written as the eos code in every codebook, which is how it stands in a later turn's
    context. A row whose numbers are no longer finite is written as BROKEN in every codebook. Nothing here waits for the
    device or depends on what it computes.
    """
    codes, broken = sample_frame(model, views)
    ended = codes[:, :-1].eq(model.config.eos).all(-1, keepdim=True)
    codes.masked_fill_(ended, model.config.eos)
    place = model.backbone.place(views.where, views.backbone)
    views.hidden.copy_(model.backbone.run(model.embed_frames(codes), place))
    views.codes.copy_(codes.masked_fill_(broken, BROKEN))
    views.where.at.add_(1).clamp_(max=state.last)


def sample_frame(model: CsmModel, views: Views) -> tuple[Tensor, Tensor]:
    """Codes [B, K], one codebook after another, and whether each row is no longer finite, [B, 1].

    The depth decoder's positions see all before them, so that its last logits tell of them all.
    """
    logits = model.head(views.hidden)
    total = logits.sum(-1, keepdim=True, dtype=torch.float32)
    codes = [views.pick(logits, views.uniforms[0])]
    x = model.projector(views.hidden)
    for index, (head, table, place) in enumerate(zip(model.depth_heads, model.depth_tables, views.depth, strict=True)):
        embedded = table.index_select(0, codes[-1])
        if index == 0:
            embedded = torch.cat((x, embedded), 1).view(-1, x.shape[1])  # two positions a row: [B * 2, depth hidden]
        x = model.depth.run(embedded, place)
        logits = head(x[1::2] if index == 0 else x)
        codes.append(views.depth_pick(logits, views.uniforms[index + 1]))
    broken = total.add_(logits.sum(-1, keepdim=True)).mul_(0).ne(0)  # nothing times a finite number is nothing
    return torch.cat([each[:, None] for each in codes], 1), broken
