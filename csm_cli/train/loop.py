"""The model's training loop: a curriculum of stages, AdamW, cosine, averaged weights, resumable at any moment."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.train.corpus import VOICES
from csm_cli.train.data import Mixer
from csm_cli.train.model import Aids, GuidedAttention, LossOptions, losses
from csm_cli.train.progress import mean, report, save_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from transformers import CsmForConditionalGeneration

    from csm_cli.train.data import Batch, Take
    from csm_cli.train.plan import ModelPlan

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 25


@dataclass(frozen=True)
class Job:
    """What a run trains on and where it keeps its state; `on_save` gets the averaged model and the step."""

    takes: Sequence[Take]
    held_out: Sequence[Batch]
    folder: Path
    on_save: Callable[[CsmForConditionalGeneration, int], None]


class ModelTrainer:
    """Model, averaged copy and optimizer at one step of a plan."""

    def __init__(self, model: CsmForConditionalGeneration, plan: ModelPlan) -> None:
        self.plan = plan
        self.device = model.device.type
        self.model = model
        self.guided = GuidedAttention(tuple(plan.guided_layers), plan.guide_width)
        model.backbone_model.set_attn_implementation(GuidedAttention.name)
        self.parameters = {name: p for name, p in model.named_parameters() if not name.startswith("codec_model")}
        self.voice_head = torch.nn.Linear(model.config.hidden_size, len(VOICES)).to(model.device)
        self.parameters |= {f"voice_head.{name}": p for name, p in self.voice_head.named_parameters()}
        model.codec_model.requires_grad_(False)
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = 0

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; returns the figures it saw."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * schedule(self.step, self.plan)
        guide_weight = self.plan.guide_weight * max(0.0, 1.0 - self.step / self.plan.guide_until)
        guided = self.guided if guide_weight > 0 else None
        options = LossOptions(self.plan.corrupt, self.plan.depth_share, self.plan.start_weight)
        with self._autocast():
            found = losses(self.model, batch.to(self.device), options, Aids(guided, self.voice_head))
        self.guided.targets = None
        self.optimizer.zero_grad(set_to_none=True)
        aids = self.plan.voice_weight * found.voice + guide_weight * found.guide
        torch.autograd.backward(found.backbone + found.depth + aids)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self._average()
        self.step += 1
        return {name: float(value.detach()) for name, value in vars(found).items()}

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Losses of the averaged weights on held-out batches, nothing corrupted, every frame counted."""
        with self.averaged(), self._autocast():
            rows = [losses(self.model, batch.to(self.device), LossOptions(0.0, 1.0), Aids()) for batch in batches]
        return {name: sum(float(getattr(row, name)) for row in rows) / len(rows) for name in ("backbone", "depth")}

    def averaged(self) -> _Swapped:
        """A context in which the model holds the averaged weights."""
        return _Swapped(self.parameters, self.average)

    def state(self) -> dict[str, Any]:
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {
            "step": self.step,
            "weights": weights,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.plan.average_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    def _autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16) if self.plan.bfloat16 else nullcontext()


class _Swapped:
    def __init__(self, parameters: dict[str, Any], others: dict[str, Any]) -> None:
        self._pairs = [(parameter, others[name]) for name, parameter in parameters.items()]

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, other in self._pairs:
            kept = parameter.detach().clone()
            parameter.copy_(other)
            other.copy_(kept)


def train_model(model: CsmForConditionalGeneration, plan: ModelPlan, job: Job) -> None:
    """Train to the plan's last step, going on from `job.folder/checkpoint.pt` if it is there."""
    job.folder.mkdir(parents=True, exist_ok=True)
    trainer = ModelTrainer(model, plan)
    checkpoint = job.folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, map_location=model.device, weights_only=True))
        _LOG.info("model: going on from step %d", trainer.step)
    saved = time.monotonic()
    history: list[dict[str, float]] = []
    for batch in _curriculum(plan, trainer, job.takes):
        history.append(trainer.update(batch))
        last = trainer.step == plan.steps
        if trainer.step % _LOG_EVERY == 0:
            report(job.folder, trainer.step, "train", mean(history[-_LOG_EVERY:]))
        if last or time.monotonic() - saved > plan.save_seconds:
            report(job.folder, trainer.step, "held_out", trainer.evaluate(job.held_out))
            save_atomically(trainer.state(), checkpoint)
            with trainer.averaged():
                job.on_save(model, trainer.step)
            saved = time.monotonic()


def schedule(step: int, plan: ModelPlan) -> float:
    """Warm-up, then cosine down to 3 %."""
    warm = min(1.0, (step + 1) / plan.warm_up)
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / plan.steps))))


def _curriculum(plan: ModelPlan, trainer: ModelTrainer, takes: Sequence[Take]) -> Iterator[Batch]:
    """Batches of the stage that is on, until the last step."""
    for stage in plan.stages:
        if trainer.step >= stage.until:
            continue
        _LOG.info("model: %s until step %d", stage.name, stage.until)
        mixer = Mixer(takes, trainer.step, plan.tokens)
        batches = mixer.batches(stage)
        while trainer.step < stage.until:
            yield next(batches)
