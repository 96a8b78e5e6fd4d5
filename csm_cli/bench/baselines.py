"""What decode speed is compared with: transformers' `generate` on the same weights, and the memory roofline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from csm_cli.bench.random_checkpoint import silence_logs
from csm_cli.bench.timing import synchronized_now
from csm_cli.checkpoint import Checkpoint
from csm_cli.engine import Request
from csm_cli.models.csm.config import ModelConfig, StackConfig

_MIN_BYTES, _MAX_BYTES = 16 << 20, 512 << 20
_COPIES = 5


class Baseline:
    """CsmForConditionalGeneration with one row."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import CsmConfig, CsmForConditionalGeneration

        silence_logs()
        weights = {name: tensor.to(dtype) for name, tensor in checkpoint.weights.items()}
        config = CsmConfig.from_dict(dict(checkpoint.config_json))
        model = CsmForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
        self.model, self._device = model.to(device).eval(), device
        self._eos = checkpoint.config.eos

    def frames(self, request: Request, mode: str = "eager") -> list[float]:
        """Seconds of each frame but the last of a request whose prompt is text.

        mode: "eager", or "static": a static cache, for which transformers compiles its forward pass on CUDA.
        """
        static = dict.fromkeys(("cache_implementation", "depth_decoder_cache_implementation"), "static")
        times: list[float] = []

        def record_start(ids: Tensor, scores: Tensor) -> Tensor:
            """Records when a frame begins, and prevents the end of speech."""
            times.append(synchronized_now(self._device))
            scores[:, self._eos] = float("-inf")
            return scores

        ids, sampling = request.prompt[None, :, -1].to(self._device), request.sampling
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            depth_decoder_do_sample=sampling.depth_temperature > 0,
            depth_decoder_temperature=sampling.depth_temperature,
            depth_decoder_top_k=sampling.depth_top_k,
            max_new_tokens=sampling.max_frames,
            logits_processor=[record_start],
            **(static if mode == "static" else {}),
        )
        return [end - start for start, end in pairwise(times)]


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
