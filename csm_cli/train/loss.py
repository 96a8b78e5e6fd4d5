"""The loss: cross-entropies of the backbone's code and of the depth decoder's, each a mean over its own targets.

Equal to transformers' `model(**inputs).loss` where the same frames are chosen and both count alike. Source of learning
the depth decoder on a random share of the frames: Sesame, "Crossing the uncanny valley of conversational voice", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from csm_cli.train.batches import IGNORE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CsmForConditionalGeneration

    from csm_cli.recipe.model import GuidedAttention
    from csm_cli.train.batches import Batch


@dataclass(frozen=True)
class Losses:
    """Cross-entropies in float32, with the weights and the rows of the batch they belong to.

    backbone, backbone_weights, rows: [N], one for each learned frame; depth: [M, K - 1] and depth_weights: [M] of those
    learned whole; guide, voice: [] sums of the guided attention's and of the voice head's.
    """

    backbone: Tensor
    backbone_weights: Tensor
    rows: Tensor
    depth: Tensor
    depth_weights: Tensor
    depth_rows: Tensor
    guide: Tensor
    voice: Tensor

    def sums(self) -> Tensor:
        """[4] what `Batch.sizes` divides into means."""
        depth = self.depth.mean(dim=-1)
        backbone = (self.backbone * self.backbone_weights).sum()
        return torch.stack((backbone, (depth * self.depth_weights).sum(), self.guide, self.voice))

    def broken_rows(self) -> list[int]:
        """Rows of the batch with a cross-entropy that is not finite."""
        rows = torch.cat((self.rows[~self.backbone.isfinite()], self.depth_rows[~self.depth.isfinite().all(dim=-1)]))
        return sorted(set(rows.tolist()))


class LossModule(nn.Module):
    """transformers' CSM as a function from a batch to its cross-entropies; the codec has no part in it.

    voices: adds a head that names which of so many voices a turn is about to be spoken in, so that taking it from the
    context is learned early; it is not part of what is kept.
    """

    def __init__(
        self, model: CsmForConditionalGeneration, guided: GuidedAttention | None = None, voices: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self._guided = guided
        self.voice_head = nn.Linear(model.config.hidden_size, voices) if voices else None

    def forward(self, batch: Batch, guide: bool = False) -> Losses:
        """Cross-entropies of a batch on the model's device; `guide`: also those of the guided attention."""
        guided = self._guided if guide else None
        if guided is not None:
            guided.targets = batch.guide
        hidden = self.model.backbone_model(inputs_embeds=self._embed(batch), use_cache=False).last_hidden_state[:, :-1]
        labels, weights = batch.labels[:, 1:], batch.weights[:, 1:].float()
        first, whole = labels[..., 0] != IGNORE, labels[..., 1] != IGNORE
        rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(first)
        logits = self.model.lm_head(hidden[first]).float()
        backbone = F.cross_entropy(logits, labels[..., 0][first], reduction="none")
        depth = self._depth(hidden[whole], labels[whole])
        pull = guided.take_sum() if guided is not None else torch.zeros((), device=hidden.device)
        voice = self._voice(hidden, batch.voices[:, :-1])
        return Losses(backbone, weights[first], rows[first], depth, weights[whole], rows[whole], pull, voice)

    def _voice(self, hidden: Tensor, voices: Tensor) -> Tensor:
        """Sum of the cross-entropies of the voices [B, S] that hidden states [B, S, H] are about to speak in."""
        if self.voice_head is None:
            return torch.zeros((), device=hidden.device)
        named = voices != IGNORE
        return F.cross_entropy(self.voice_head(hidden[named]).float(), voices[named], reduction="sum")

    def _embed(self, batch: Batch) -> Tensor:
        """[B, S, H]: of a text id, or the sum over a frame's codes."""
        table = self.model.backbone_model.embed_tokens.embed_audio_tokens.weight
        books, vocab = batch.codes.shape[-1], self.model.config.vocab_size
        offsets = torch.arange(books, device=table.device) * vocab
        summed = F.embedding_bag((batch.codes + offsets).flatten(0, 1), table, mode="sum")  # [B * S, H]
        frames = summed.view(*batch.text.shape, -1)
        return torch.where(batch.is_text[..., None], self.model.embed_text_tokens(batch.text), frames)

    def _depth(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies [M, K - 1] of frames [M, K] after the backbone's hidden states [M, H]."""
        inputs = F.pad(labels[:, :-1], (1, 0))  # position 0 is replaced by the hidden state
        everywhere = torch.ones_like(inputs)  # without a mask transformers misreads a single frame as packed sequences
        logits = self.model.depth_decoder(
            input_ids=inputs, backbone_last_hidden_state=hidden, attention_mask=everywhere, use_cache=False
        ).logits
        return F.cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none")
