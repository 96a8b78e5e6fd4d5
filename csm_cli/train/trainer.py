"""The optimizer step: AdamW, warm-up and cosine decay, an exponential moving average (EMA), any number of processes.

Losses are summed over all processes and micro-batches and divided by their total target count, so gradients do not
depend on how a batch is split. Each step seeds its own random numbers, so a killed run resumes exactly.
"""

from __future__ import annotations

import logging
import math
import os
import re
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from csm_cli.device import pick_device
from csm_cli.errors import PeerLost, TrainingFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from csm_cli.train.batches import Batch
    from csm_cli.train.loss import LossModule

_LOG = logging.getLogger(__name__)
# Class names of torch's errors, and words of gloo's, which are plain RuntimeErrors.
_LOST_PROCESS = re.compile(r"^Dist\w*Error|gloo|NCCL|\bpeer\b|Broken pipe")

AuxLossWeights = dict[str, float]
"""Weights of a LossModule's auxiliary losses beside the backbone's loss of weight 1; 0 where one is missing."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimization over `steps` steps.

    The learning rate warms up over `warmup_steps` and decays along a cosine to `min_lr_ratio` of its peak.
    depth_loss_weight: weight of the depth decoder's loss beside the backbone's. ema_decay: 0 for no averaged weights.
    eight_bit: AdamW with 8-bit state, from bitsandbytes.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    min_lr_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    depth_loss_weight: float = 1.0
    ema_decay: float = 0.999
    eight_bit: bool = False
    seed: int = 0

    def lr_ratio(self, step: int) -> float:
        """Learning rate of a step as a share of its peak."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        return warmup * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)


class Trainer:
    """A loss module, its averaged weights `ema` and its optimizer after `step` steps."""

    def __init__(self, module: LossModule, config: OptimizerConfig, accelerator: Accelerator) -> None:
        """Raises UsageError where 8-bit AdamW is wanted without bitsandbytes."""
        self.config = config
        self.accelerator = accelerator
        self.module = module.to(accelerator.device).train()
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.optimizer = accelerator.prepare(_optimizer(list(self.parameters.values()), config))
        self._distributed = accelerator.prepare(self.module)
        averaged = self.parameters if config.ema_decay else {}
        self.ema = {name: p.detach().clone() for name, p in averaged.items()}
        self.step = 0

    def update(self, batches: Sequence[Batch], aux_weights: AuxLossWeights | None = None) -> dict[str, float]:
        """One optimizer step over this process's micro-batches; returns the mean losses over all processes.

        Raises:
            TrainingFailed: a loss or gradient that is not finite, with the step and the examples.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * config.lr_ratio(self.step)
        torch.manual_seed(_mix_seed(config.seed, self.step, self.accelerator.process_index))
        means = self.compute_gradients(batches, aux_weights or {})
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), config.max_grad_norm)
        if not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite("gradients are", [name for batch in batches for name in batch.example_ids])
        self.optimizer.step()
        if self.ema:
            decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                current = [p.detach() for p in self.parameters.values()]
                torch._foreach_lerp_(list(self.ema.values()), current, 1 - decay)
        self.step += 1
        return dict(zip(("backbone", "depth", *self.module.aux_losses), means.tolist(), strict=True))

    def compute_gradients(self, batches: Sequence[Batch], aux_weights: AuxLossWeights) -> Tensor:
        """Accumulates gradients of all micro-batches in the parameters; returns the mean losses [2 + A]."""
        self.optimizer.zero_grad(set_to_none=True)
        device, names = self.accelerator.device, self.module.aux_losses
        local_counts = torch.stack([batch.target_counts(names) for batch in batches]).sum(dim=0)
        counts = self.sum_over_processes(local_counts).clamp(min=1e-6)
        weights = [1.0, self.config.depth_loss_weight, *(aux_weights.get(name, 0.0) for name in names)]
        scale = torch.tensor(weights, dtype=torch.float64) / counts.cpu()
        scale = (scale * self.accelerator.num_processes).float().to(device)  # DDP takes the mean
        active = {name for name, weight in aux_weights.items() if weight > 0}
        total = torch.zeros(len(weights), dtype=torch.float64, device=device)
        for index, batch in enumerate(batches):
            more = index + 1 < len(batches)
            with self.accelerator.no_sync(self._distributed) if more else nullcontext():
                losses = self._distributed(batch.to(device), active)
                sums = losses.sums()
                if not torch.isfinite(sums).all():
                    rows = losses.non_finite_rows() or range(len(batch.example_ids))
                    raise self._not_finite("the loss is", [batch.example_ids[row] for row in rows])
                self.accelerator.backward((sums * scale).sum())
            total += sums.detach().double()
        return (self.sum_over_processes(total) / counts.to(device)).cpu()

    def _not_finite(self, subject: str, example_ids: Sequence[str]) -> TrainingFailed:
        listed = ", ".join(example_ids[:3]) + (f" and {len(example_ids) - 3} more" if len(example_ids) > 3 else "")
        return TrainingFailed(
            f"step {self.step + 1}: {subject} not finite at {listed or 'an unnamed example'}; check its text and audio,"
            " or lower learning_rate"
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> list[float]:
        """Mean cross-entropy of each codebook [K] with the averaged weights, over the batches of all processes."""
        books = self.module.model.config.num_codebooks
        sums = torch.zeros(2, books, dtype=torch.float64, device=self.accelerator.device)
        self.module.eval()
        with self.ema_weights():
            for batch in batches:  # not through DDP, which hangs where processes have different numbers of batches
                losses = self.module(batch.to(self.accelerator.device))
                sums[0, 0] += losses.backbone.sum()
                sums[0, 1:] += losses.depth.sum(dim=0)
                sums[1, 0] += len(losses.backbone)
                sums[1, 1:] += len(losses.depth)
        self.module.train()
        total = self.sum_over_processes(sums)
        means: list[float] = (total[0] / total[1].clamp(min=1)).tolist()
        return means

    def sum_over_processes(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """While entered, the model holds the averaged weights."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    @torch.no_grad()
    def _swap_weights(self) -> None:
        for name, other in self.ema.items():
            current = self.parameters[name].detach().clone()
            self.parameters[name].copy_(other)
            other.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        for name, value in self.ema.items():
            value.copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _optimizer(parameters: Sequence[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases and norms have no weight decay."""
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not config.eight_bit:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as problem:
        raise UsageError("optimizer adamw8bit needs bitsandbytes; pip install bitsandbytes") from problem
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    return optimizer


def _mix_seed(*numbers: int) -> int:
    """One seed from several numbers, by steps of a linear congruential generator (Knuth's MMIX constants)."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


def make_accelerator(device: str, bfloat16: bool, peer_timeout: float) -> Accelerator:
    """accelerate's view of this process, on `device`; `auto` leaves the choice to accelerate.

    peer_timeout: seconds after which an operation with the other processes fails.

    In processes started by a launcher, the launcher assigns the devices, except that `cpu` puts all on the CPU.

    Raises:
        UsageError, DeviceMissing: as `pick_device`.
    """
    requested = None if device == "auto" else pick_device(device)
    launched = "LOCAL_RANK" in os.environ
    if requested and requested.index is not None and not launched:
        torch.cuda.set_device(requested)  # accelerate's "cuda" is the current device
    on_cpu = requested is not None and requested.type == "cpu"
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=peer_timeout))
    accelerator = Accelerator(mixed_precision="bf16" if bfloat16 else "no", cpu=on_cpu or None, kwargs_handlers=[group])
    ignored = requested and (requested.type != accelerator.device.type or (launched and requested.index is not None))
    if ignored and accelerator.is_main_process:
        _LOG.warning("device %s is ignored: the launcher assigned %s to this process", device, accelerator.device)
    return accelerator


@contextmanager
def detect_lost_process(state_file: Path, step: Callable[[], int]) -> Iterator[None]:
    """Translates the failure of a collective operation. state_file: saved state of the run; step: last finished step.

    Raises:
        PeerLost: another process of this run has ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as problem:
        single = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if single or not _LOST_PROCESS.search(f"{type(problem).__name__}: {problem}"):
            raise
        when = f"after step {step()}" if step() else "before the first step"
        resume = "run the same command again to resume from the last saved step"
        cause = "ended: killed, out of memory, or with an error of its own"
        if re.search(r"time(d |-)?out", str(problem), re.IGNORECASE):
            cause = "did not answer within peer_timeout: its host or the network is down, or it is stuck"
        raise PeerLost(
            f"{when}, another process of this run {cause}; "
            + (resume if state_file.exists() else "nothing was saved yet, run the same command again to start over")
        ) from problem
