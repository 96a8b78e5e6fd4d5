"""A checkpoint's config.json as frozen types: the only place that reads sizes and special ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csm_cli.errors import CheckpointInvalid

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; `factor` 1 is plain RoPE, otherwise llama3 scaling applies."""

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_seq_len: int = 1


@dataclass(frozen=True)
class StackConfig:
    """Sizes of one Llama-style transformer stack."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    max_seq_len: int
    eps: float
    rope: Rope


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and ids of a CSM.

    codebooks: K, codes per frame. vocab: size of one codebook's table; ids from `codebook_size` up are special and are
    never sampled. eos: the code that ends speech. audio_token, audio_eos_token: the text ids of a frame and of the
    frame that ends a turn in transformers' prompts.
    """

    backbone: StackConfig
    depth: StackConfig
    codebooks: int
    vocab: int
    codebook_size: int
    text_vocab: int
    eos: int
    audio_token: int
    audio_eos_token: int
    tied: bool


def _required(config: Json, key: str, where: str) -> Any:
    if config.get(key) is None:
        raise CheckpointInvalid(f'{where} has no "{key}": not a CSM checkpoint in transformers format')
    return config[key]


def _size(config: Json, key: str, where: str) -> int:
    size = int(_required(config, key, where))
    if size < 1:
        raise CheckpointInvalid(f'{where}: "{key}" is {size}; must be at least 1')
    return size


def _rope(config: Json, where: str) -> Rope:
    """Both spellings: transformers 5 (`rope_parameters`) and 4 (`rope_scaling` beside `rope_theta`)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 500000.0)
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type == "default":
        return Rope(theta)
    if rope_type != "llama3":
        raise CheckpointInvalid(f"{where} has RoPE type {rope_type!r}; CSM supports default and llama3")
    rope = Rope(
        theta=theta,
        factor=float(_required(scaling, "factor", where)),
        low_freq_factor=float(_required(scaling, "low_freq_factor", where)),
        high_freq_factor=float(_required(scaling, "high_freq_factor", where)),
        original_max_seq_len=_size(scaling, "original_max_position_embeddings", where),
    )
    if not (rope.factor > 0 and 0 < rope.low_freq_factor < rope.high_freq_factor):
        raise CheckpointInvalid(f"{where}: RoPE's factor must be above 0, high_freq_factor above low_freq_factor")
    return rope


def _stack(config: Json, where: str) -> StackConfig:
    if config.get("attention_bias") or config.get("mlp_bias") or config.get("hidden_act", "silu") != "silu":
        raise CheckpointInvalid(f"{where} has biases or an activation other than SiLU, which CSM does not support")
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise CheckpointInvalid(f"{where} has {heads} attention heads over {kv_heads} key-value heads: not a multiple")
    return StackConfig(
        layers=_size(config, "num_hidden_layers", where),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(config.get("head_dim") or hidden // heads),
        intermediate=_size(config, "intermediate_size", where),
        max_seq_len=_size(config, "max_position_embeddings", where),
        eps=float(config.get("rms_norm_eps", 1e-5)),
        rope=_rope(config, where),
    )


def model_config(config: Json) -> ModelConfig:
    """Reads transformers' CsmConfig from a parsed config.json.

    Raises:
        CheckpointInvalid: another model type, a missing key, or a value that CSM does not support.
    """
    model_type = config.get("model_type")
    if model_type != "csm":
        raise CheckpointInvalid(f"config.json: model_type is {model_type!r}, not 'csm'; choose a CSM checkpoint")
    codec = _required(config, "codec_config", "config.json")
    depth = _required(config, "depth_decoder_config", "config.json")
    model = ModelConfig(
        backbone=_stack(config, "config.json"),
        depth=_stack(depth, "depth_decoder_config"),
        codebooks=_size(config, "num_codebooks", "config.json"),
        vocab=_size(config, "vocab_size", "config.json"),
        codebook_size=int(codec.get("codebook_size", 2048)),
        text_vocab=_size(config, "text_vocab_size", "config.json"),
        eos=int(config.get("codebook_eos_token_id", 0)),
        audio_token=int(_required(config, "audio_token_id", "config.json")),
        audio_eos_token=int(_required(config, "audio_eos_token_id", "config.json")),
        tied=bool(config.get("tie_codebooks_embeddings", True)),
    )
    depth_codebooks = int(depth.get("num_codebooks", model.codebooks))
    if depth_codebooks != model.codebooks:
        raise CheckpointInvalid(f"num_codebooks is {model.codebooks}, depth_decoder_config's is {depth_codebooks}")
    if model.depth.max_seq_len < model.codebooks:
        raise CheckpointInvalid(
            f"depth_decoder_config has {model.depth.max_seq_len} positions, too few for {model.codebooks} codebooks"
        )
    if not 0 <= model.eos < model.vocab:
        raise CheckpointInvalid(f"codebook_eos_token_id is {model.eos}; must be from 0 to {model.vocab - 1}")
    return model
