"""Stage "model": the bundled voice's sizes, its auxiliary losses, and its training in a curriculum of stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, CsmConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from csm_cli.recipe.codec import log_figures, mean_figures
from csm_cli.recipe.codes import AUDIO, AUDIO_EOS, BEGIN, GUIDE, TEXT_VOCAB, VOICE, ConversationMixer
from csm_cli.train.batches import IGNORE, LossMask
from csm_cli.train.history import save_state
from csm_cli.train.loss import LossModule
from csm_cli.train.trainer import OptimizerConfig, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import CsmForConditionalGeneration

    from csm_cli.recipe.codes import CodedUtterance
    from csm_cli.recipe.plan import ModelPlan
    from csm_cli.train.batches import Batch

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 25
_SPECIAL_CODES = 3
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
_BACKBONE_ROPE = {**_ROPE, "low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}


def model_config(backbone: dict[str, Any], depth: dict[str, Any], codec: dict[str, Any]) -> CsmConfig:
    """CSM's config for a codec's K codebooks; `backbone` and `depth` hold the sizes of the two stacks."""
    books, vocab = codec["num_quantizers"], codec["codebook_size"] + _SPECIAL_CODES
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
        codebook_pad_token_id=vocab - 1,
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


def codebook_size(config: CsmConfig) -> int:
    """Codes of each codebook, without the special ones."""
    return int(config.vocab_size) - _SPECIAL_CODES


class GuidedAttention:
    """SDPA that in some layers also trains the first head to attend to the byte that is spoken next.

    After Tachibana et al. 2017 (guided attention). Set `targets` before a forward pass, then call `take_sum`.
    """

    name = "guided"

    def __init__(self, layers: tuple[int, ...], width: float) -> None:
        self._layers = layers
        self._width = width
        self.targets: Tensor | None = None  # [B, S] positions, or IGNORE
        self._losses: list[Tensor] = []
        AttentionInterface.register(self.name, self._attend)
        AttentionMaskInterface.register(self.name, sdpa_mask)

    def take_sum(self) -> Tensor:
        """The loss [] summed over the targets, averaged over the guided layers; clears the targets."""
        losses, self._losses, self.targets = self._losses, [], None
        return torch.stack(losses).mean()

    def _attend(self, module: nn.Module, query: Tensor, key: Tensor, *rest: Any, **kwargs: Any) -> Any:
        if self.targets is not None and module.layer_idx in self._layers and query.shape[2] == self.targets.shape[1]:
            self._losses.append(self._head_loss(query[:, 0], key[:, 0], query.shape[-1] ** -0.5, self.targets))
        return sdpa_attention_forward(module, query, key, *rest, **kwargs)

    def _head_loss(self, query: Tensor, key: Tensor, scale: float, targets: Tensor) -> Tensor:
        """Cross-entropy of one head's attention [B, S, S] against a Gaussian around the target position."""
        scores = (query.float() @ key.float().transpose(1, 2)) * scale
        positions = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill(positions[None, :] > positions[:, None], float("-inf"))[targets != IGNORE]  # [N, S]
        distance = (positions[None, :] - targets[targets != IGNORE][:, None]) / self._width
        gaussian = torch.softmax(-0.5 * distance.square(), dim=-1)
        return -(gaussian * scores.log_softmax(dim=-1).clamp(min=-30.0)).sum()


class VoiceLossModule(LossModule):
    """CSM's losses with two auxiliary ones: guided attention, and a head that predicts the voice of the next turn.

    The head, which is not exported, makes the model take the voice from the context early.
    """

    aux_losses = (GUIDE, VOICE)

    def __init__(self, model: CsmForConditionalGeneration, guided: GuidedAttention, voices: int) -> None:
        super().__init__(model)
        self._guided = guided
        self.voice_head = nn.Linear(model.config.hidden_size, voices)

    def backbone_states(self, batch: Batch, active: Collection[str]) -> Tensor:
        if GUIDE in active:
            self._guided.targets = batch.aux_targets[GUIDE]
        return super().backbone_states(batch, active)

    def aux_sums(self, hidden: Tensor, batch: Batch, active: Collection[str]) -> dict[str, Tensor]:
        guide = self._guided.take_sum() if GUIDE in active else torch.zeros((), device=hidden.device)
        voices = batch.aux_targets[VOICE][:, :-1]
        labelled = voices != IGNORE
        logits = self.voice_head(hidden[labelled]).float()
        return {GUIDE: guide, VOICE: F.cross_entropy(logits, voices[labelled], reduction="sum")}


@dataclass(frozen=True)
class RecipeJob:
    """Data, number of voices and folder of a training; `on_save` is called with the averaged model and the step."""

    utterances: Sequence[CodedUtterance]
    voices: int
    held_out: Sequence[Batch]
    folder: Path
    on_save: Callable[[CsmForConditionalGeneration, int], None]


def voice_trainer(model: CsmForConditionalGeneration, plan: ModelPlan, voices: int) -> Trainer:
    """A trainer of the whole model except its codec."""
    guided = GuidedAttention(tuple(plan.guided_layers), plan.guide_width)
    model.backbone_model.set_attn_implementation(GuidedAttention.name)
    model.codec_model.requires_grad_(False)
    config = OptimizerConfig(
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        ema_decay=plan.ema_decay,
    )
    accelerator = Accelerator(mixed_precision="bf16" if plan.bfloat16 else "no", cpu=model.device.type == "cpu")
    return Trainer(VoiceLossModule(model, guided, voices), config, accelerator)


def train_model(model: CsmForConditionalGeneration, plan: ModelPlan, job: RecipeJob) -> None:
    """Trains to the plan's last step; resumes from `job.folder/checkpoint.pt` if it exists."""
    job.folder.mkdir(parents=True, exist_ok=True)
    trainer = voice_trainer(model, plan, job.voices)
    checkpoint = job.folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load_state_dict(torch.load(checkpoint, map_location=model.device, weights_only=True))
        _LOG.info("model: resuming after step %d", trainer.step)
    last_save = time.monotonic()
    figures: list[dict[str, float]] = []
    mask = LossMask(plan.depth_frame_share, plan.token_corruption, plan.turn_start_weight, codebook_size(model.config))
    for batch in _curriculum(plan, trainer, job.utterances, mask):
        guide = plan.guide_weight * max(0.0, 1.0 - trainer.step / plan.guide_until)
        figures.append(trainer.update([batch], {GUIDE: guide, VOICE: plan.voice_weight}))
        if trainer.step % _LOG_EVERY == 0:
            log_figures(job.folder, trainer.step, "train", mean_figures(figures[-_LOG_EVERY:]))
        if trainer.step == plan.steps or time.monotonic() - last_save > plan.save_seconds:
            backbone, *depth = trainer.evaluate(job.held_out)
            losses = {"backbone": backbone, "depth": sum(depth) / len(depth)}
            log_figures(job.folder, trainer.step, "held_out", losses)
            save_state(trainer.state_dict(), checkpoint)
            with trainer.ema_weights():
                job.on_save(model, trainer.step)
            last_save = time.monotonic()


def _curriculum(
    plan: ModelPlan, trainer: Trainer, utterances: Sequence[CodedUtterance], mask: LossMask
) -> Iterator[Batch]:
    """Batches of the current stage, until the last step."""
    for stage in plan.stages:
        if trainer.step >= stage.until:
            continue
        _LOG.info("model: stage %s until step %d", stage.name, stage.until)
        batches = ConversationMixer(utterances, trainer.step, plan.tokens, mask).batches(stage)
        while trainer.step < stage.until:
            yield next(batches)
