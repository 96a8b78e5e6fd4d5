"""transformers' `generate` on the same weights, timed frame by frame: the engine's baseline."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from csm_cli.bench.random_checkpoint import silence_logs
from csm_cli.bench.timing import synchronized_now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from csm_cli.checkpoint import Checkpoint
    from csm_cli.engine import SamplingParams
    from csm_cli.models.csm.config import ModelConfig, StackConfig


class _FrameTimer(LogitsProcessor):  # type: ignore[misc]
    """Records when each frame begins, and prevents the end of speech."""

    def __init__(self, eos: int, device: torch.device) -> None:
        self.times: list[float] = []
        self._eos, self._device = eos, device

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(synchronized_now(self._device))
        scores[:, self._eos] = float("-inf")
        return scores


class Baseline:
    """CsmForConditionalGeneration with one row."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        silence_logs()
        weights = {name: tensor.to(dtype) for name, tensor in checkpoint.weights.items()}
        config = transformers_config(checkpoint.config, checkpoint.codec_config)
        model = CsmForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
        self._model, self._device = model.to(device).eval(), device
        self._eos = checkpoint.config.eos
        self._cache: dict[str, Any] = {}

    def with_static_cache(self) -> Baseline:
        """The same model with a static cache, for which transformers compiles its forward pass on CUDA."""
        other = copy(self)
        other._cache = {"cache_implementation": "static", "depth_decoder_cache_implementation": "static"}
        return other

    def frames(self, text: Tensor, sampling: SamplingParams) -> list[float]:
        """Seconds of each frame but the last, after a prompt of text ids [S]."""
        timer = _FrameTimer(self._eos, self._device)
        ids = text[None].to(self._device)
        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            depth_decoder_do_sample=sampling.depth_temperature > 0,
            depth_decoder_temperature=sampling.depth_temperature,
            depth_decoder_top_k=sampling.depth_top_k,
            max_new_tokens=sampling.max_frames,
            logits_processor=LogitsProcessorList([timer]),
            **self._cache,
        )
        return [end - start for start, end in zip(timer.times, timer.times[1:], strict=False)]


def transformers_config(config: ModelConfig, codec: Mapping[str, Any]) -> CsmConfig:
    """transformers' config of the same checkpoint."""
    shared = {"vocab_size": config.vocab, "num_codebooks": config.codebooks}
    depth = shared | _stack(config.depth) | {"backbone_hidden_size": config.backbone.hidden}
    return CsmConfig(
        **shared,
        **_stack(config.backbone),
        text_vocab_size=config.text_vocab,
        audio_token_id=config.audio_token,
        audio_eos_token_id=config.audio_eos_token,
        codebook_eos_token_id=config.eos,
        codebook_pad_token_id=config.vocab - 1,
        pad_token_id=config.audio_eos_token,
        bos_token_id=config.audio_token,
        tie_codebooks_embeddings=config.tied,
        depth_decoder_config=depth | {"model_type": "csm_depth_decoder_model"},
        codec_config=dict(codec),
    )


def _stack(stack: StackConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stack.rope.theta}
    if stack.rope.factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": stack.rope.factor,
            "low_freq_factor": stack.rope.low_freq_factor,
            "high_freq_factor": stack.rope.high_freq_factor,
            "original_max_position_embeddings": stack.rope.original_max_seq_len,
        }
    return {
        "num_hidden_layers": stack.layers,
        "hidden_size": stack.hidden,
        "intermediate_size": stack.intermediate,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.kv_heads,
        "head_dim": stack.head_dim,
        "max_position_embeddings": stack.max_seq_len,
        "rms_norm_eps": stack.eps,
        "rope_parameters": rope,
    }
