"""A checkpoint's config.json as frozen types: the only place that reads sizes and special ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.family import PROMPT_STYLES, Flavor, family_model
from csm_cli.models.limits import CSM_LIMITS

_ROPE_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")

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
    frame that ends a turn in transformers' prompts. prompt_style: how a speaker and a text are written, a name in
    PROMPT_STYLES.
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
    prompt_style: str = "plain"

    def prompt_text(self, speaker: int, text: str) -> str:
        """The text of a turn as the model was trained to read it, without begin and end of text."""
        text = text.lstrip() if self.prompt_style == "spaced" else text
        return PROMPT_STYLES[self.prompt_style].format(speaker=speaker, text=text)


def _required(config: Json, key: str, where: str) -> Any:
    if config.get(key) is None:
        raise CheckpointInvalid(f'{where} has no "{key}": not a CSM checkpoint in transformers format')
    return config[key]


def _size(config: Json, key: str, where: str, default: int | None = None) -> int:
    value = config.get(key) if default is not None else _required(config, key, where)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= CSM_LIMITS[key]:
        expected = f"a whole number from 1 to {CSM_LIMITS[key]}"
        raise CheckpointInvalid(f'{where}: "{key}" is {_shown(value)}; must be {expected}')
    return value


def _id(config: Json, key: str, where: str, end: int, default: int | None = None) -> int:
    """A token or code, from 0 to below `end`."""
    value = _required(config, key, where) if default is None else config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise CheckpointInvalid(f"{where}: {key} is {_shown(value)}; must be from 0 to {end - 1}")
    return value


def _positive(config: Json, key: str, where: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointInvalid(f'{where}: "{key}" is {_shown(value)}; must be a number above 0')
    return float(value)


def _part(config: Json, key: str, where: str) -> Json:
    value = _required(config, key, where)
    if not isinstance(value, Mapping):
        raise CheckpointInvalid(f'{where}: "{key}" is {_shown(value)}; must be an object')
    return value


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | None) and len(str(value)[:41]) < 41 else "too long"


def _rope(config: Json, where: str) -> Rope:
    """Both spellings: transformers 5 (`rope_parameters`) and 4 (`rope_scaling` beside `rope_theta`)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointInvalid(f"{where}: rope_parameters must be an object")
    theta = _positive(scaling if scaling.get("rope_theta") else config, "rope_theta", where, 500000.0)
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type == "default":
        return Rope(theta)
    if rope_type != "llama3":
        raise CheckpointInvalid(f"{where} has RoPE type {_shown(rope_type)}; CSM supports default and llama3")
    rope = Rope(
        theta=theta,
        **{key: _positive(scaling, key, where, _required(scaling, key, where)) for key in _ROPE_FACTORS},
        original_max_seq_len=_size(scaling, "original_max_position_embeddings", where),
    )
    if not rope.low_freq_factor < rope.high_freq_factor:
        raise CheckpointInvalid(f"{where}: RoPE's high_freq_factor must be above low_freq_factor")
    return rope


def _stack(config: Json, where: str) -> StackConfig:
    if config.get("attention_bias") or config.get("mlp_bias") or config.get("hidden_act", "silu") != "silu":
        raise CheckpointInvalid(f"{where} has biases or an activation other than SiLU, which CSM does not support")
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    kv_heads = _size(config, "num_key_value_heads", where, heads)
    head_dim = _size(config, "head_dim", where, hidden // heads)
    if head_dim % 2:
        raise CheckpointInvalid(f"{where} has heads of {head_dim} dimensions; RoPE turns pairs of them")
    if heads % kv_heads:
        raise CheckpointInvalid(f"{where} has {heads} attention heads over {kv_heads} key-value heads: not a multiple")
    return StackConfig(
        layers=_size(config, "num_hidden_layers", where),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_size(config, "intermediate_size", where),
        max_seq_len=_size(config, "max_position_embeddings", where),
        eps=_positive(config, "rms_norm_eps", where, 1e-5),
        rope=_rope(config, where),
    )


def _prompt_style(config: Json, backbone: StackConfig, depth: StackConfig) -> str:
    """`csm_prompt_style` if config.json has it, else that of the published model of these sizes, else plain."""
    style = config.get("csm_prompt_style")
    if style is None:
        sizes = (Flavor(s.layers, s.heads, s.kv_heads, s.hidden, s.intermediate) for s in (backbone, depth))
        known = family_model(*sizes)
        return known.prompt_style if known else "plain"
    if not isinstance(style, str) or style not in PROMPT_STYLES:
        expected = " or ".join(PROMPT_STYLES)
        raise CheckpointInvalid(f"config.json: csm_prompt_style is {_shown(style)}; must be {expected}")
    return style


def model_config(config: Json) -> ModelConfig:
    """Reads transformers' CsmConfig from a parsed config.json.

    Raises:
        CheckpointInvalid: another model type, a missing key, or a value that CSM does not support.
    """
    model_type = config.get("model_type")
    if model_type != "csm":
        raise CheckpointInvalid(f"config.json: model_type is {_shown(model_type)}, not 'csm'; choose a CSM checkpoint")
    codec = _part(config, "codec_config", "config.json")
    depth = _part(config, "depth_decoder_config", "config.json")
    vocab, text_vocab = (_size(config, key, "config.json") for key in ("vocab_size", "text_vocab_size"))
    backbone_stack, depth_stack = _stack(config, "config.json"), _stack(depth, "depth_decoder_config")
    model = ModelConfig(
        backbone=backbone_stack,
        depth=depth_stack,
        codebooks=_size(config, "num_codebooks", "config.json"),
        vocab=vocab,
        codebook_size=_id(codec, "codebook_size", "codec_config", vocab + 1, 2048),
        text_vocab=text_vocab,
        eos=_id(config, "codebook_eos_token_id", "config.json", vocab, 0),
        audio_token=_id(config, "audio_token_id", "config.json", CSM_LIMITS["text_vocab_size"]),
        audio_eos_token=_id(config, "audio_eos_token_id", "config.json", CSM_LIMITS["text_vocab_size"]),
        tied=bool(config.get("tie_codebooks_embeddings", True)),
        prompt_style=_prompt_style(config, backbone_stack, depth_stack),
    )
    depth_codebooks = _size(depth, "num_codebooks", "depth_decoder_config", model.codebooks)
    if depth_codebooks != model.codebooks:
        raise CheckpointInvalid(f"num_codebooks is {model.codebooks}, depth_decoder_config's is {depth_codebooks}")
    if model.depth.max_seq_len < model.codebooks:
        raise CheckpointInvalid(
            f"depth_decoder_config has {model.depth.max_seq_len} positions, too few for {model.codebooks} codebooks"
        )
    return model
