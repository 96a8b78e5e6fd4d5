"""The bundled voice's model under training: transformers' CSM in its sizes, and guided attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, CsmConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from csm_cli.recipe.tokenizer import AUDIO, AUDIO_EOS, BEGIN, TEXT_VOCAB

if TYPE_CHECKING:
    from torch import Tensor

CODES = 512
_SPECIAL_CODES = 3
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
_BACKBONE_ROPE = {**_ROPE, "low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}


def model_config(backbone: dict[str, Any], depth: dict[str, Any], codec: dict[str, Any]) -> CsmConfig:
    """CSM's config for a codec of K codebooks of 512; `backbone` and `depth` hold the two stacks' sizes."""
    books, vocab = codec["num_quantizers"], CODES + _SPECIAL_CODES
    depth_rope = {  # csm-1b's factors, for as many positions as there are codebooks
        **_ROPE,
        "low_freq_factor": books / 8192,
        "high_freq_factor": books / 2048,
        "original_max_position_embeddings": books,
    }
    depth_config = {
        "num_codebooks": books,
        "vocab_size": vocab,
        "backbone_hidden_size": backbone["hidden_size"],
        "max_position_embeddings": books + 1,
        "rope_parameters": depth_rope,
        **depth,
    }
    return CsmConfig(
        num_codebooks=books,
        vocab_size=vocab,
        text_vocab_size=TEXT_VOCAB,
        codebook_pad_token_id=CODES + 2,
        codebook_eos_token_id=0,
        audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_EOS,
        pad_token_id=AUDIO,
        bos_token_id=BEGIN,
        rope_parameters=_BACKBONE_ROPE,
        depth_decoder_config=depth_config,
        codec_config={"model_type": "mimi", **codec},
        **backbone,
    )


class GuidedAttention:
    """SDPA that, in some layers, also asks the first head to look at the byte that is heard next.

    Source of the idea: Tachibana et al. 2017 (guided attention). Set `targets` before a forward pass, read `loss`.
    """

    name = "guided"

    def __init__(self, layers: tuple[int, ...], width: float) -> None:
        self._layers = layers
        self._width = width
        self.targets: Tensor | None = None
        self._losses: list[Tensor] = []
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, sdpa_mask)

    def take_sum(self) -> Tensor:
        """Sum over the targets, a mean over the guided layers; the targets are done with."""
        losses, self._losses, self.targets = self._losses, [], None
        return torch.stack(losses).mean()

    def _attend(self, module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **kwargs: Any) -> Any:
        if self.targets is not None and module.layer_idx in self._layers and query.shape[2] == self.targets.shape[1]:
            self._losses.append(self._guide(query[:, 0], key[:, 0], query.shape[-1] ** -0.5, self.targets))
        return sdpa_attention_forward(module, query, key, *rest, **kwargs)

    def _guide(self, query: Tensor, key: Tensor, scale: float, targets: Tensor) -> Tensor:
        """Cross-entropy of one head's attention [B, S, S] against a bell around the target byte."""
        scores = (query.float() @ key.float().transpose(1, 2)) * scale
        length = scores.shape[-1]
        places = torch.arange(length, device=scores.device)
        scores = scores.masked_fill(places[None, :] > places[:, None], float("-inf"))[targets >= 0]  # [N, S]
        distance = (places[None, :] - targets[targets >= 0][:, None]) / self._width
        bell = torch.softmax(-0.5 * distance.square(), dim=-1)
        return -(bell * scores.log_softmax(dim=-1).clamp(min=-30.0)).sum()
