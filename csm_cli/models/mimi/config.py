"""Mimi's sizes, read from a checkpoint's `codec_config`. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csm_cli.errors import CheckpointInvalid

_SIZES = {
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "compress": 2,
    "codebook_size": 2048,
    "codebook_dim": 256,
    "vector_quantization_hidden_dimension": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "upsample_groups": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "sliding_window": 250,
    "sampling_rate": 24000,
}
# Values of a causal mono codec; others would change the computation.
_FIXED = {
    "use_causal_conv": True,
    "trim_right_ratio": 1.0,
    "pad_mode": "constant",
    "audio_channels": 1,
    "hidden_act": "gelu",
    "attention_bias": False,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the encoder's and the decoder's transformer; `window` counts positions, the newest included."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    window: int
    theta: float
    eps: float


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of a Mimi.

    ratios: up-sampling factors in the decoder's order. stride: positions of the transformer per frame.
    quantizers: codebooks the checkpoint holds, the first `semantic` of them in a chain of their own.
    """

    rate: int
    ratios: tuple[int, ...]
    stride: int
    filters: int
    residual_layers: int
    kernel: int
    last_kernel: int
    residual_kernel: int
    dilation_growth: int
    compress: int
    conv_shortcut: bool
    upsample_groups: int
    codebook_size: int
    quantizers: int
    semantic: int
    codebook_dim: int
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
            raise CheckpointInvalid(f"codec_config: {key} is {config[key]!r}; only {value!r} is supported")
    sizes = {key: _size(config, key, default) for key, default in _SIZES.items()}
    if sizes["codebook_dim"] != sizes["vector_quantization_hidden_dimension"]:
        raise CheckpointInvalid("codec_config: codebook_dim and vector_quantization_hidden_dimension differ")
    if not 0 < sizes["num_semantic_quantizers"] < sizes["num_quantizers"]:
        raise CheckpointInvalid("codec_config: num_semantic_quantizers is not between 0 and num_quantizers")
    ratios = _ratios(config)
    return CodecConfig(
        rate=sizes["sampling_rate"],
        ratios=ratios,
        stride=_stride(config, sizes["sampling_rate"], math.prod(ratios)),
        filters=sizes["num_filters"],
        residual_layers=sizes["num_residual_layers"],
        kernel=sizes["kernel_size"],
        last_kernel=sizes["last_kernel_size"],
        residual_kernel=sizes["residual_kernel_size"],
        dilation_growth=sizes["dilation_growth_rate"],
        compress=sizes["compress"],
        conv_shortcut=bool(config.get("use_conv_shortcut", False)),
        upsample_groups=sizes["upsample_groups"],
        codebook_size=sizes["codebook_size"],
        quantizers=sizes["num_quantizers"],
        semantic=sizes["num_semantic_quantizers"],
        codebook_dim=sizes["codebook_dim"],
        transformer=_transformer(config, sizes),
    )


def _size(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    minimum = 0 if key in ("num_residual_layers", "num_hidden_layers") else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise CheckpointInvalid(f"codec_config: {key} is {value!r}; expected an integer of at least {minimum}")
    return value


def _ratios(config: Mapping[str, Any]) -> tuple[int, ...]:
    ratios = config.get("upsampling_ratios") or [8, 6, 5, 4]
    if not isinstance(ratios, list | tuple) or not all(isinstance(ratio, int) and ratio > 0 for ratio in ratios):
        raise CheckpointInvalid(f"codec_config: upsampling_ratios is {ratios!r}; expected a list of positive integers")
    return tuple(ratios)


def _stride(config: Mapping[str, Any], rate: int, hop: int) -> int:
    """Transformer positions per frame, as MimiConfig.latent_stride: from a frame rate under one of two names."""
    frame_rate = config.get("frame_rate") or config.get("_frame_rate") or rate / (2 * hop)
    stride = int(math.ceil(rate / hop) / frame_rate)
    if stride < 2:
        raise CheckpointInvalid(
            f"codec_config: frame_rate is {frame_rate!r}; its ratios allow at most {rate / (2 * hop)}"
        )
    return stride


def _transformer(config: Mapping[str, Any], sizes: Mapping[str, int]) -> TransformerConfig:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointInvalid(f"codec_config: rope_type is {rope['rope_type']!r}; only default is supported")
    hidden, heads, kv_heads = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if hidden % heads or heads % kv_heads:
        raise CheckpointInvalid(
            f"codec_config: {heads} heads do not divide {hidden} channels, or {kv_heads} not {heads}"
        )
    return TransformerConfig(
        hidden=hidden,
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=sizes["intermediate_size"],
        window=sizes["sliding_window"],
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        eps=float(config.get("norm_eps", 1e-5)),
    )
