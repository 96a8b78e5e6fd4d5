"""The whole CSM: backbone, depth decoder, their embeddings and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.csm.config import ModelConfig
from csm_cli.models.csm.transformer import DecoderStack, Linear, StackWeights


class _CastWeights(Mapping[str, Tensor]):
    """Weights converted on access to one device and dtype."""

    def __init__(self, weights: StackWeights, device: torch.device, dtype: torch.dtype) -> None:
        self._weights, self._device, self._dtype = weights, device, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].to(self._device, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class CsmModel:
    """Both stacks, their embeddings and heads, in transformers' mathematics; inference only.

    weights: tensors by transformers' on-disk names, in the shapes of `config` (checked where they are read).
    """

    def __init__(self, config: ModelConfig, weights: StackWeights, device: torch.device, dtype: torch.dtype) -> None:
        cast = _CastWeights(weights, device, dtype)
        self.config = config
        self.device, self.dtype = device, dtype
        self.text_table = cast["embed_text_tokens.weight"]
        self.audio_table = cast["backbone_model.embed_tokens.embed_audio_tokens.weight"]
        self._offsets = torch.arange(config.codebooks, device=device) * config.vocab
        self.backbone = DecoderStack(config.backbone, cast, "backbone_model")
        self.depth = DecoderStack(config.depth, cast, "depth_decoder.model")
        # The weight of a stack's last norm is folded into what follows it.
        backbone_norm = cast["backbone_model.norm.weight"] * self.backbone.norm.gain
        depth_norm = cast["depth_decoder.model.norm.weight"] * self.depth.norm.gain
        projector = cast["depth_decoder.model.inputs_embeds_projector.weight"]
        self.projector = Linear(projector * backbone_norm)
        self.head = Linear(cast["lm_head.weight"][: config.codebook_size] * backbone_norm)
        heads = cast["depth_decoder.codebooks_head.weight"][:, :, : config.codebook_size]  # [K - 1, hidden, codes]
        self.depth_heads = [Linear(head.T * depth_norm) for head in heads]
        # Table and projector are constant: the depth decoder's inputs are projected once.  [(K - 1) * V, hidden]
        embeddings = cast["depth_decoder.model.embed_tokens.weight"][: (config.codebooks - 1) * config.vocab]
        self.depth_table = F.linear(embeddings, projector)
        self.depth_tables = self.depth_table.view(config.codebooks - 1, config.vocab, -1).unbind()

    def embed_frames(self, codes: Tensor) -> Tensor:
        """[..., K] codes to [..., hidden]: the sum of a frame's embeddings, one per codebook."""
        return F.embedding(codes + self._offsets, self.audio_table).sum(-2)

    def embed_prompt(self, prompt: Tensor) -> Tensor:
        """[S, K + 1] positions, each a text id or a frame, to [S, hidden]."""
        text = prompt[:, -1]
        is_text = text >= 0
        embedded = torch.empty(len(prompt), self.config.backbone.hidden, dtype=self.dtype, device=prompt.device)
        embedded[is_text] = F.embedding(text[is_text], self.text_table)
        embedded[~is_text] = self.embed_frames(prompt[~is_text, :-1])
        return embedded
