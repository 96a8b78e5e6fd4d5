"""The floor of a frame: every weight it needs, read once per use, at the bandwidth this machine copies with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from csm_cli.models.csm.config import ModelConfig, StackConfig

_LEAST, _MOST = 16 << 20, 512 << 20
_COPIES = 5


@dataclass(frozen=True)
class WeightPiece:
    """Weights that a frame reads `reads` times."""

    name: str
    weights: int
    reads: int

    @property
    def per_frame(self) -> int:
        return self.weights * self.reads


def _stack_weights(stack: StackConfig) -> int:
    attention = stack.hidden * stack.head_dim * 2 * (stack.heads + stack.kv_heads)
    layer = attention + 3 * stack.hidden * stack.intermediate + 2 * stack.hidden
    return stack.layers * layer + stack.hidden


def weight_pieces(config: ModelConfig) -> list[WeightPiece]:
    """What one frame reads; the depth decoder's other inputs are projected once and for all."""
    later, heads = config.codebooks - 1, config.depth.hidden * config.vocab
    return [
        WeightPiece("backbone", _stack_weights(config.backbone), 1),
        WeightPiece("head", config.backbone.hidden * config.vocab, 1),
        WeightPiece("depth decoder", _stack_weights(config.depth), later),
        WeightPiece("depth heads", heads, later),
        WeightPiece("projector", config.backbone.hidden * config.depth.hidden, 1),
    ]


def frame_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of weights that a frame reads."""
    return dtype.itemsize * sum(piece.per_frame for piece in weight_pieces(config))


def bandwidth(config: ModelConfig, device: torch.device) -> float:
    """Bytes a second read and written by a copy, the best of a few, of as many bytes as the model's weights have.

    A small model's weights stay in a cache, and so does what is copied here.
    """
    weights = 4 * sum(piece.weights for piece in weight_pieces(config))
    source = torch.ones(min(max(weights, _LEAST), _MOST), dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(_COPIES):
        started = synchronized_now(device)
        target.copy_(source)
        seconds.append(synchronized_now(device) - started)
    return 2 * len(source) / min(seconds)


def timer(device: torch.device) -> str:
    """What `now` reads: on one thread of a CPU the time the processor gave, which other programs hardly spoil."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def synchronized_now(device: torch.device) -> float:
    """Seconds on the clock once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.process_time() if timer(device) == "processor" else time.perf_counter()
