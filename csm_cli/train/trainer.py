"""The one training loop's step: AdamW, warm-up and cosine, averaged weights, over any number of processes.

Losses are sums over all processes and micro-batches divided by what they all hold, so that gradients do not depend on
how a batch is split. Every step seeds its own random numbers: a run that was killed goes on exactly.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.errors import CsmError, TrainingFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accelerate import Accelerator
    from torch import Tensor

    from csm_cli.train.batches import Batch
    from csm_cli.train.loss import Losses, LossModule

NAMES = ("backbone", "depth", "guide", "voice")


@dataclass(frozen=True)
class Optimization:
    """How weights are changed in `steps` steps.

    The learning rate warms up over `warm_up` steps and falls along a cosine to `floor` of itself. depth_weight: what
    the depth decoder's loss counts beside the backbone's. average_decay: of the averaged weights, 0 for none.
    eight_bit: AdamW's state in 8 bits, by bitsandbytes.
    """

    steps: int
    learning_rate: float
    warm_up: int = 100
    floor: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    depth_weight: float = 1.0
    average_decay: float = 0.999
    eight_bit: bool = False
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, over its largest."""
        warm = min(1.0, (step + 1) / max(1, self.warm_up))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return warm * (self.floor + (1 - self.floor) * cosine)


@dataclass(frozen=True)
class AuxLossWeights:
    """What guided attention and the voice head count beside the backbone's loss."""

    guide: float = 0.0
    voice: float = 0.0


NO_AUX_LOSSES = AuxLossWeights()


class Trainer:
    """A learner, its averaged weights and its optimizer after `step` steps."""

    def __init__(self, learner: LossModule, plan: Optimization, accelerator: Accelerator) -> None:
        self.plan = plan
        self.accelerator = accelerator
        self.bare = learner.to(accelerator.device).train()
        self.parameters = {name: p for name, p in self.bare.named_parameters() if p.requires_grad}
        self.optimizer = accelerator.prepare(_optimizer(list(self.parameters.values()), plan))
        self._learner = accelerator.prepare(self.bare)
        averaged = self.parameters if plan.average_decay else {}
        self.average = {name: p.detach().clone() for name, p in averaged.items()}
        self.step = 0

    def update(self, batches: Sequence[Batch], aids: AuxLossWeights = NO_AUX_LOSSES) -> dict[str, float]:
        """One step over the micro-batches of this process; returns the mean losses of all processes.

        Raises:
            TrainingFailed: a loss that is not finite, with the step and the items.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self.plan.rate(self.step)
        torch.manual_seed(_mixed(self.plan.seed, self.step, self.accelerator.process_index))
        means = self._gradients(batches, aids)
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.plan.clip)
        if not torch.isfinite(torch.as_tensor(norm)):
            raise self._failed("gradients are", [name for batch in batches for name in batch.names])
        self.optimizer.step()
        self._follow()
        self.step += 1
        return dict(zip(NAMES, means.tolist(), strict=True))

    def _gradients(self, batches: Sequence[Batch], aids: AuxLossWeights) -> Tensor:
        """[4] the mean losses; their gradients are left in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        sizes = self.reduced(torch.stack([batch.sizes for batch in batches]).sum(dim=0)).clamp(min=1e-6)
        weights = (1.0, self.plan.depth_weight, aids.guide, aids.voice)
        scale = torch.tensor(weights, dtype=torch.float64) / sizes.cpu()
        scale = (scale * self.accelerator.num_processes).float().to(self.accelerator.device)  # DDP takes the mean
        seen = torch.zeros(len(NAMES), dtype=torch.float64, device=self.accelerator.device)
        for index, batch in enumerate(batches):
            more = index + 1 < len(batches)
            with self.accelerator.no_sync(self._learner) if more else nullcontext():
                found = self._learner(batch.to(self.accelerator.device), aids.guide > 0)
                sums = found.sums()
                self._refuse_broken(found, sums, batch)
                self.accelerator.backward((sums * scale).sum())
            seen += sums.detach().double()
        return (self.reduced(seen) / sizes.to(seen.device)).cpu()

    def _refuse_broken(self, found: Losses, sums: Tensor, batch: Batch) -> None:
        if not torch.isfinite(sums).all():
            rows = found.broken_rows() or range(len(batch.names))
            raise self._failed("the loss is", [batch.names[row] for row in rows])

    def _failed(self, what: str, names: Sequence[str]) -> CsmError:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return TrainingFailed(
            f"step {self.step + 1}: {what} not finite at {listed or 'an unnamed item'}; look at its text and audio, or"
            " lower learning_rate"
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> list[float]:
        """Mean cross-entropy of each codebook [K] under the averaged weights, over the batches of all processes."""
        books = self.bare.model.config.num_codebooks
        sums = torch.zeros(2, books, dtype=torch.float64, device=self.accelerator.device)
        self.bare.eval()
        with self.averaged():
            for batch in batches:  # not through DDP, which waits where processes have different numbers of them
                found = self.bare(batch.to(self.accelerator.device))
                sums[0, 0] += found.backbone.sum()
                sums[0, 1:] += found.depth.sum(dim=0)
                sums[1, 0] += len(found.backbone)
                sums[1, 1:] += len(found.depth)
        self.bare.train()
        total = self.reduced(sums)
        means: list[float] = (total[0] / total[1].clamp(min=1)).tolist()
        return means

    def reduced(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total

    def averaged(self) -> EmaWeightsSwap:
        """A context in which the model holds the averaged weights."""
        return EmaWeightsSwap(self.parameters, self.average)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average:
            decay = min(self.plan.average_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay)


class EmaWeightsSwap:
    """While it is entered, parameters hold other values."""

    def __init__(self, parameters: dict[str, Any], others: dict[str, Any]) -> None:
        self._pairs = [(parameters[name], other) for name, other in others.items()]

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


def _optimizer(parameters: Sequence[torch.nn.Parameter], plan: Optimization) -> torch.optim.Optimizer:
    """AdamW; vectors do not decay."""
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not plan.eight_bit:
        return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as problem:
        raise UsageError("optimizer adamw8bit needs bitsandbytes; pip install bitsandbytes") from problem
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
    return optimizer


def _mixed(*numbers: int) -> int:
    """One seed of several numbers, without a pattern."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed
