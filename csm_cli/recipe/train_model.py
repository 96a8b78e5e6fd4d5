"""The bundled voice's training: a curriculum of stages through the one trainer, resumable at any moment."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from csm_cli.recipe.conversations import ConversationMixer
from csm_cli.recipe.corpus import VOICES
from csm_cli.recipe.model import CODES, GuidedAttention
from csm_cli.train.batches import LossMask
from csm_cli.train.loss import LossModule
from csm_cli.train.progress import log_figures, mean, save_atomically
from csm_cli.train.trainer import AuxLossWeights, Optimization, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from transformers import CsmForConditionalGeneration

    from csm_cli.recipe.conversations import CorpusTake
    from csm_cli.recipe.plan import ModelPlan
    from csm_cli.train.batches import Batch

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 25


@dataclass(frozen=True)
class RecipeJob:
    """What a run trains on and where it keeps its state; `on_save` gets the averaged model and the step."""

    takes: Sequence[CorpusTake]
    held_out: Sequence[Batch]
    folder: Path
    on_save: Callable[[CsmForConditionalGeneration, int], None]


def voice_trainer(model: CsmForConditionalGeneration, plan: ModelPlan) -> Trainer:
    """A trainer of the whole model but its codec, with guided attention in some layers and a head that names voices."""
    guided = GuidedAttention(tuple(plan.guided_layers), plan.guide_width)
    model.backbone_model.set_attn_implementation(GuidedAttention.name)
    model.codec_model.requires_grad_(False)
    optimization = Optimization(
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        warm_up=plan.warm_up,
        weight_decay=plan.weight_decay,
        average_decay=plan.average_decay,
    )
    accelerator = Accelerator(mixed_precision="bf16" if plan.bfloat16 else "no", cpu=model.device.type == "cpu")
    return Trainer(LossModule(model, guided, len(VOICES)), optimization, accelerator)


def train_model(model: CsmForConditionalGeneration, plan: ModelPlan, job: RecipeJob) -> None:
    """Train to the plan's last step, going on from `job.folder/checkpoint.pt` if it is there."""
    job.folder.mkdir(parents=True, exist_ok=True)
    trainer = voice_trainer(model, plan)
    checkpoint = job.folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, map_location=model.device, weights_only=True))
        _LOG.info("model: going on from step %d", trainer.step)
    saved = time.monotonic()
    history: list[dict[str, float]] = []
    for batch in _curriculum(plan, trainer, job.takes):
        guide = plan.guide_weight * max(0.0, 1.0 - trainer.step / plan.guide_until)
        history.append(trainer.update([batch], AuxLossWeights(guide, plan.voice_weight)))
        last = trainer.step == plan.steps
        if trainer.step % _LOG_EVERY == 0:
            log_figures(job.folder, trainer.step, "train", mean(history[-_LOG_EVERY:]))
        if last or time.monotonic() - saved > plan.save_seconds:
            first, *others = trainer.evaluate(job.held_out)
            log_figures(job.folder, trainer.step, "held_out", {"backbone": first, "depth": sum(others) / len(others)})
            save_atomically(trainer.state(), checkpoint)
            with trainer.averaged():
                job.on_save(model, trainer.step)
            saved = time.monotonic()


def _curriculum(plan: ModelPlan, trainer: Trainer, takes: Sequence[CorpusTake]) -> Iterator[Batch]:
    """Batches of the stage that is on, until the last step."""
    lesson = LossMask(plan.depth_share, plan.corrupt, plan.start_weight, CODES)
    for stage in plan.stages:
        if trainer.step >= stage.until:
            continue
        _LOG.info("model: %s until step %d", stage.name, stage.until)
        batches = ConversationMixer(takes, trainer.step, plan.tokens, lesson).batches(stage)
        while trainer.step < stage.until:
            yield next(batches)
