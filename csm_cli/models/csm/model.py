"""The whole CSM: backbone, depth decoder, their embeddings and heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.errors import UsageError
from csm_cli.models.csm.config import ModelConfig
from csm_cli.models.csm.kernels import has_triton
from csm_cli.models.csm.layers import Int8Linear, Int8Weight, Linear
from csm_cli.models.csm.transformer import DecoderStack


class CsmModel:
    """Both stacks, their embeddings and heads, in transformers' mathematics; inference only.

    weights: tensors by transformers' on-disk names, in the shapes of `config` (checked where they are read).
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        def read(name: str) -> Tensor:
            return weights[name].to(device, dtype)

        self.config = config
        self.device, self.dtype = device, dtype
        self.text_table = read("embed_text_tokens.weight")
        self.audio_table = read("backbone_model.embed_tokens.embed_audio_tokens.weight")
        self._offsets = torch.arange(config.codebooks, device=device) * config.vocab
        self.backbone = DecoderStack(config.backbone, read, "backbone_model")
        self.depth = DecoderStack(config.depth, read, "depth_decoder.model")
        # The weight of a stack's last norm is folded into what follows it.
        backbone_norm = read("backbone_model.norm.weight") * self.backbone.norm.gain
        depth_norm = read("depth_decoder.model.norm.weight") * self.depth.norm.gain
        projector = read("depth_decoder.model.inputs_embeds_projector.weight")
        self.projector = Linear(projector * backbone_norm)
        self.head = Linear(read("lm_head.weight")[: config.codebook_size] * backbone_norm)
        heads = read("depth_decoder.codebooks_head.weight")[:, :, : config.codebook_size]  # [K - 1, hidden, codes]
        self.depth_heads = [Linear(head.T * depth_norm) for head in heads]
        # Table and projector are constant: the depth decoder's inputs are projected once.  [(K - 1) * V, hidden]
        embeddings = read("depth_decoder.model.embed_tokens.weight")[: (config.codebooks - 1) * config.vocab]
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

    def quantize(self) -> None:
        """Quantizes the linear layers of both stacks to 8 bits, in place; tables, norms and heads stay as they are.

        Raises:
            UsageError: the model is neither on CUDA with Triton nor on a CPU in float32.
        """
        if self.device.type == "cuda":
            if not has_triton():
                raise UsageError("int8 on CUDA needs triton and a C compiler; install both or omit --quantize")
        elif self.device.type != "cpu" or self.dtype != torch.float32:
            raise UsageError(
                "int8 needs CUDA, or a CPU in float32; add --device cpu --dtype float32 or omit --quantize"
            )
        int8 = Int8Weight if self.device.type == "cuda" else Int8Linear
        for layer in (*self.backbone.layers, *self.depth.layers):
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(layer, name, int8(getattr(layer, name).weight))
