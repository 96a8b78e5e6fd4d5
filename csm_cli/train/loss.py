"""Training loss: cross-entropy of the backbone's codebook 0 and of the depth decoder's codebooks.

Equal to transformers' `model(**inputs).loss` for the same choice of frames. Training the depth decoder on a random
share of the frames: Sesame, "Crossing the uncanny valley of conversational voice", 2025.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from csm_cli.train.batches import IGNORE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CsmForConditionalGeneration

    from csm_cli.train.batches import Batch


@dataclass(frozen=True)
class Losses:
    """Cross-entropies in float32 with their loss weights and batch rows.

    backbone, backbone_weights, backbone_rows: [N], one for each target frame; depth: [M, K - 1], depth_weights,
    depth_rows: [M] of the frames whose other codebooks are targets too; aux: [] sums of the auxiliary losses by name.
    """

    backbone: Tensor
    backbone_weights: Tensor
    backbone_rows: Tensor
    depth: Tensor
    depth_weights: Tensor
    depth_rows: Tensor
    aux: Mapping[str, Tensor]

    def sums(self) -> Tensor:
        """[2 + A], which `Batch.target_counts` divides into means."""
        depth = (self.depth.mean(dim=-1) * self.depth_weights).sum()
        return torch.stack(((self.backbone * self.backbone_weights).sum(), depth, *self.aux.values()))

    def non_finite_rows(self) -> list[int]:
        """Rows of the batch with a cross-entropy that is not finite."""
        depth_rows = self.depth_rows[~self.depth.isfinite().all(dim=-1)]
        return sorted(set(torch.cat((self.backbone_rows[~self.backbone.isfinite()], depth_rows)).tolist()))


class LossModule(nn.Module):
    """transformers' CSM as a function from a batch to its losses; the codec is not involved.

    A subclass adds auxiliary losses: it names them in `aux_losses` and returns their sums from `aux_sums`.
    """

    aux_losses: tuple[str, ...] = ()

    def __init__(self, model: CsmForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, active: Collection[str] = ()) -> Losses:
        """Losses of a batch on the model's device. active: auxiliary losses with a weight above 0."""
        hidden = self.backbone_states(batch, active)[:, :-1]
        labels, weights = batch.labels[:, 1:], batch.weights[:, 1:].float()
        backbone, depth = labels[..., 0] != IGNORE, labels[..., 1] != IGNORE
        rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(backbone)
        logits = self.model.lm_head(hidden[backbone]).float()
        return Losses(
            backbone=F.cross_entropy(logits, labels[..., 0][backbone], reduction="none"),
            backbone_weights=weights[backbone],
            backbone_rows=rows[backbone],
            depth=self._depth_losses(hidden[depth], labels[depth]),
            depth_weights=weights[depth],
            depth_rows=rows[depth],
            aux=self.aux_sums(hidden, batch, active),
        )

    def backbone_states(self, batch: Batch, active: Collection[str]) -> Tensor:
        """Hidden states [B, S, H]; a position's input is a text embedding, or the sum of a frame's code embeddings."""
        table = self.model.backbone_model.embed_tokens.embed_audio_tokens.weight
        books, vocab = batch.codes.shape[-1], self.model.config.vocab_size
        offsets = torch.arange(books, device=table.device) * vocab
        frames = F.embedding_bag((batch.codes + offsets).flatten(0, 1), table, mode="sum")  # [B * S, H]
        frames = frames.view(*batch.text_ids.shape, -1)
        inputs = torch.where(batch.is_text[..., None], self.model.embed_text_tokens(batch.text_ids), frames)
        states: Tensor = self.model.backbone_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states

    def aux_sums(self, hidden: Tensor, batch: Batch, active: Collection[str]) -> dict[str, Tensor]:
        """The sum [] over its targets of every auxiliary loss, in the order of `aux_losses`.

        hidden: [B, S - 1, H], states from which the next position is predicted.
        """
        return {}

    def _depth_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies [M, K - 1] of frames [M, K] after the backbone's hidden states [M, H]."""
        inputs = F.pad(labels[:, :-1], (1, 0))  # position 0 is replaced by the hidden state
        everywhere = torch.ones_like(inputs)  # without a mask transformers misreads a single frame as packed sequences
        logits = self.model.depth_decoder(
            input_ids=inputs, backbone_last_hidden_state=hidden, attention_mask=everywhere, use_cache=False
        ).logits
        return F.cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none")
