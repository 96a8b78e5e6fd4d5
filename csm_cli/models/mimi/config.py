"""Mimi's sizes, read from a checkpoint's `codec_config`. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.limits import MAX_RATIO, MAX_RATIOS, MIMI_LIMITS

_FIXED = {  # of a causal mono codec; other values would change the computation
    "use_causal_conv": True,
    "trim_right_ratio": 1.0,
    "pad_mode": "constant",
    "audio_channels": 1,
    "hidden_act": "gelu",
    "attention_bias": False,
}


def _size(key: str, default: int, minimum: int = 1) -> Any:
    """A field read from `key` of a codec_config, which must be an integer of at least `minimum`."""
    return field(metadata={"key": key, "default": default, "minimum": minimum})


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the encoder's and the decoder's transformer. window: positions, the newest included."""

    hidden: int = _size("hidden_size", 512)
    layers: int = _size("num_hidden_layers", 8, minimum=0)
    heads: int = _size("num_attention_heads", 8)
    kv_heads: int = _size("num_key_value_heads", 8)
    intermediate: int = _size("intermediate_size", 2048)
    window: int = _size("sliding_window", 250)
    head_dim: int
    theta: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a Mimi.

    ratios: up-sampling factors in the decoder's order. stride: positions of the transformer per frame.
    quantizers: codebooks the checkpoint holds, the first `semantic` of them in a chain of their own.
    """

    rate: int = _size("sampling_rate", 24000)
    filters: int = _size("num_filters", 64)
    residual_layers: int = _size("num_residual_layers", 1, minimum=0)
    kernel: int = _size("kernel_size", 7)
    last_kernel: int = _size("last_kernel_size", 3)
    residual_kernel: int = _size("residual_kernel_size", 3)
    dilation_growth: int = _size("dilation_growth_rate", 2)
    compress: int = _size("compress", 2)
    upsample_groups: int = _size("upsample_groups", 512)
    codebook_size: int = _size("codebook_size", 2048)
    codebook_dim: int = _size("codebook_dim", 256)
    quantizers: int = _size("num_quantizers", 32)
    semantic: int = _size("num_semantic_quantizers", 1)
    ratios: tuple[int, ...]
    stride: int
    conv_shortcut: bool
    transformer: TransformerConfig

    @property
    def frame_samples(self) -> int:
        return math.prod(self.ratios) * self.stride

    @property
    def frame_rate(self) -> float:
        return self.rate / self.frame_samples


def codec_config(config: Mapping[str, Any]) -> CodecConfig:
    """Reads transformers' MimiConfig, with its defaults for missing keys.

    Raises:
        CheckpointInvalid: a value of the wrong type, or one of another codec than a causal mono Mimi.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointInvalid(f"codec_config: {key} is {config[key]!r:.40}; only {value!r} is supported")
    sizes = _read_sizes(CodecConfig, config)
    if sizes["codebook_dim"] != config.get("vector_quantization_hidden_dimension", 256):
        raise CheckpointInvalid("codec_config: codebook_dim and vector_quantization_hidden_dimension differ")
    if not 0 < sizes["semantic"] < sizes["quantizers"]:
        raise CheckpointInvalid("codec_config: num_semantic_quantizers is not between 0 and num_quantizers")
    ratios = config.get("upsampling_ratios") or [8, 6, 5, 4]
    is_list = isinstance(ratios, list | tuple) and len(ratios) <= MAX_RATIOS
    if not is_list or not all(type(ratio) is int and 1 <= ratio <= MAX_RATIO for ratio in ratios):
        expected = f"a list of up to {MAX_RATIOS} integers from 1 to {MAX_RATIO}"
        raise CheckpointInvalid(f"codec_config: upsampling_ratios is {ratios!r:.40}; expected {expected}")
    return CodecConfig(
        **sizes,
        ratios=tuple(ratios),
        stride=_stride(config, sizes["rate"], math.prod(ratios)),
        conv_shortcut=bool(config.get("use_conv_shortcut", False)),
        transformer=_transformer(config),
    )


def _read_sizes(cls: type[CodecConfig] | type[TransformerConfig], config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {}
    for each in fields(cls):
        if not each.metadata:
            continue
        key, minimum = each.metadata["key"], each.metadata["minimum"]
        value = config.get(key, each.metadata["default"])
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= MIMI_LIMITS[key]:
            expected = f"an integer from {minimum} to {MIMI_LIMITS[key]}"
            raise CheckpointInvalid(f"codec_config: {key} is {value!r:.40}; expected {expected}")
        sizes[each.name] = value
    return sizes


def _stride(config: Mapping[str, Any], rate: int, hop: int) -> int:
    """Transformer positions per frame, as MimiConfig.latent_stride: from a frame rate under one of two names."""
    frame_rate = config.get("frame_rate") or config.get("_frame_rate") or rate / (2 * hop)
    if isinstance(frame_rate, bool) or not isinstance(frame_rate, int | float) or not 1 <= frame_rate <= rate:
        raise CheckpointInvalid(f"codec_config: frame_rate is {frame_rate!r:.40}; expected frames per second from 1 on")
    stride = int(math.ceil(rate / hop) / frame_rate)
    if stride < 2:
        raise CheckpointInvalid(
            f"codec_config: frame_rate is {frame_rate!r}; its ratios allow at most {rate / (2 * hop)}"
        )
    return stride


def _transformer(config: Mapping[str, Any]) -> TransformerConfig:
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointInvalid("codec_config: rope_parameters must be an object")
    if rope.get("rope_type", "default") != "default":
        raise CheckpointInvalid(f"codec_config: rope_type is {rope['rope_type']!r:.40}; only default is supported")
    sizes = _read_sizes(TransformerConfig, config)
    hidden, heads, kv_heads = sizes["hidden"], sizes["heads"], sizes["kv_heads"]
    if hidden % heads or heads % kv_heads:
        raise CheckpointInvalid(
            f"codec_config: {heads} heads do not divide {hidden} channels, or {kv_heads} not {heads}"
        )
    head_dim = config.get("head_dim") or hidden // heads
    if type(head_dim) is not int or head_dim % 2 or not 2 <= head_dim <= MIMI_LIMITS["hidden_size"]:
        raise CheckpointInvalid(f"codec_config: head_dim is {head_dim!r:.40}; expected an even integer")
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    eps = config.get("norm_eps", 1e-5)
    for key, value in (("rope_theta", theta), ("norm_eps", eps)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointInvalid(f"codec_config: {key} is {value!r:.40}; expected a number above 0")
    return TransformerConfig(**sizes, head_dim=head_dim, theta=float(theta), eps=float(eps))
