"""The roofline of decoding: the time to read each weight once per use, at the memory bandwidth of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from csm_cli.bench.timing import synchronized_now

if TYPE_CHECKING:
    from csm_cli.models.csm.config import ModelConfig, StackConfig

_MIN_BYTES, _MAX_BYTES = 16 << 20, 512 << 20
_COPIES = 5


@dataclass(frozen=True)
class WeightGroup:
    """Weights that a frame reads `reads` times."""

    name: str
    weights: int
    reads: int

    @property
    def per_frame(self) -> int:
        return self.weights * self.reads


def weight_groups(config: ModelConfig) -> list[WeightGroup]:
    """What one frame reads. The depth decoder's input embeddings are projected in advance."""

    def stack_weights(stack: StackConfig) -> int:
        attention = stack.hidden * stack.head_dim * 2 * (stack.heads + stack.kv_heads)
        layer = attention + 3 * stack.hidden * stack.intermediate + 2 * stack.hidden
        return stack.layers * layer + stack.hidden

    depth_steps = config.codebooks - 1
    return [
        WeightGroup("backbone", stack_weights(config.backbone), 1),
        WeightGroup("head", config.backbone.hidden * config.vocab, 1),
        WeightGroup("depth decoder", stack_weights(config.depth), depth_steps),
        WeightGroup("depth heads", config.depth.hidden * config.vocab, depth_steps),
        WeightGroup("projector", config.backbone.hidden * config.depth.hidden, 1),
    ]


def frame_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of weights that a frame reads."""
    return dtype.itemsize * sum(group.per_frame for group in weight_groups(config))


def bandwidth(config: ModelConfig, device: torch.device) -> float:
    """Bytes per second read and written by the fastest of a few copies, each as large as the model's weights.

    A small model's weights stay in the cache, and so does a copy of the same size.
    """
    weights = 4 * sum(group.weights for group in weight_groups(config))
    source = torch.ones(min(max(weights, _MIN_BYTES), _MAX_BYTES), dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(_COPIES):
        start = synchronized_now(device)
        target.copy_(source)
        seconds.append(synchronized_now(device) - start)
    return 2 * len(source) / min(seconds)
