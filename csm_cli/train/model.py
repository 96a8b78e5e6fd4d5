"""The model under training: transformers' CSM, its two losses, and guided attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, CsmConfig, CsmForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from csm_cli.train.data import IGNORE
from csm_cli.train.tokenizer import AUDIO, AUDIO_EOS, BEGIN, TEXT_VOCAB

if TYPE_CHECKING:
    from torch import Tensor

    from csm_cli.train.data import Batch

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

    def loss(self) -> Tensor:
        """Mean over the guided layers since the last call."""
        losses, self._losses = self._losses, []
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
        return -(bell * scores.log_softmax(dim=-1).clamp(min=-30.0)).sum(dim=-1).mean()


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropies of codebook 0, of the others, of the voice that is about to speak, and of the guide."""

    backbone: Tensor
    depth: Tensor
    voice: Tensor
    guide: Tensor


@dataclass(frozen=True)
class LossOptions:
    """Share of input frames replaced by random codes, and of frames whose other codebooks are learned.

    start_weight: how much a turn's first two frames count: they alone show whose voice it is.
    """

    corrupt: float = 0.07
    depth_share: float = 0.25
    start_weight: float = 1.0


@dataclass(frozen=True)
class Aids:
    """What helps in training and is not kept: guided attention, and a head [voices, H] that names the voice of a turn
    before it begins, so that copying it from the context is learned early."""

    guided: GuidedAttention | None = None
    voice_head: nn.Linear | None = None


def losses(model: CsmForConditionalGeneration, batch: Batch, options: LossOptions, aids: Aids) -> Losses:
    """The losses of a batch; each is a mean over what it counts."""
    guided = aids.guided
    if guided is not None:
        guided.targets = batch.guide
    audio = model.backbone_model.embed_tokens(_corrupted(batch, options.corrupt))
    text = model.embed_text_tokens(batch.text)
    inputs = torch.where(batch.is_text[..., None], text, audio)  # [B, S, H]
    hidden = model.backbone_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, :-1]
    voice = _voice_loss(aids.voice_head, hidden, batch.voices[:, :-1])
    labels = batch.labels[:, 1:]
    learned = labels[..., 0] != IGNORE
    starts = (batch.is_text | batch.is_text.roll(1, dims=1))[:, :-1][learned]
    hidden, labels = hidden[learned], labels[learned]  # [N, H], [N, K]
    weights = 1.0 + (options.start_weight - 1.0) * starts
    backbone = _mean(F.cross_entropy(model.lm_head(hidden).float(), labels[:, 0], reduction="none"), weights)
    kept = (labels == 0).all(dim=-1) | (starts & (options.start_weight > 1))
    chosen = kept | (torch.rand(len(kept), device=kept.device) < options.depth_share)
    guide = guided.loss() if guided is not None else torch.zeros((), device=hidden.device)
    return Losses(backbone, _depth_loss(model, hidden[chosen], labels[chosen], weights[chosen]), voice, guide)


def _voice_loss(head: nn.Linear | None, hidden: Tensor, voices: Tensor) -> Tensor:
    """Cross-entropy of the voices [B, S] that hidden states [B, S, H] are about to speak in."""
    named = voices != IGNORE
    if head is None or not named.any():
        return torch.zeros((), device=hidden.device)
    return F.cross_entropy(head(hidden[named]), voices[named])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum()


def _depth_loss(model: CsmForConditionalGeneration, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of codebooks 1..K-1 of frames [N, K] from the backbone's hidden states [N, H]."""
    inputs = F.pad(labels[:, :-1], (1, 0))  # position 0 is replaced by the hidden state
    everywhere = torch.ones_like(inputs)  # without a mask transformers misreads a single frame as packed sequences
    logits = model.depth_decoder(
        input_ids=inputs, backbone_last_hidden_state=hidden, attention_mask=everywhere, use_cache=False
    ).logits
    entropy = F.cross_entropy(logits.transpose(1, 2).float(), labels[:, 1:], reduction="none")  # [N, K-1]
    return _mean(entropy.mean(dim=-1), weights)


def _corrupted(batch: Batch, share: float) -> Tensor:
    """Input codes with a share of the frames replaced at random; end frames stay."""
    if share <= 0:
        return batch.codes
    replaced = (torch.rand(batch.text.shape, device=batch.text.device) < share) & (batch.codes != 0).any(dim=-1)
    noise = torch.randint(1, CODES, batch.codes.shape, device=batch.codes.device)
    return torch.where(replaced[..., None], noise, batch.codes)
