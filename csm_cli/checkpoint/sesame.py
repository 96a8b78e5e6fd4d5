"""Sesame's original format: torchtune's names, RoPE over interleaved pairs, neither codec nor tokenizer.

Source: github.com/SesameAILabs/csm (models.py) and torchtune's Llama 3.2. RoPE there scales by 32 between the factors
1 and 4 of 8192 positions; the numbers below are the same curve for the windows of 2048 positions and K + 1, as in the
published conversion of csm-1b.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.weights import (
    BACKBONE,
    BACKBONE_TABLE,
    DEPTH,
    DEPTH_TABLE,
    Shapes,
    StoredTensor,
    TensorMap,
    match_tensors,
)
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import Json, ModelConfig, Rope, model_config
from csm_cli.models.csm.family import FAMILY, FLAVORS, FamilyModel, Flavor

if TYPE_CHECKING:
    from torch import Tensor

CODEC_FILE = "codec.safetensors"
"""The codec beside Sesame's tensors, which do not include it. An addition of csm-cli; other readers ignore it."""

_BACKBONE_ROPE = Rope(500000.0, 32.0, 0.125, 0.5, 1024)
_DEPTH_ROPE = Rope(500000.0, 32.0, 0.001953125, 0.0078125, 16)
_POSITIONS = 2048
_TEXT_IDS = {"audio_token_id": 128002, "audio_eos_token_id": 128003}

_STACK_PREFIXES = {f"{BACKBONE}.": "backbone.", f"{DEPTH}.": "decoder."}
_STACK_NAMES = {
    "self_attn.o_proj.weight": "attn.output_proj.weight",
    "self_attn.": "attn.",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale",
    "norm.weight": "norm.scale",
}
_OTHER_NAMES = {
    "embed_text_tokens.weight": "text_embeddings.weight",
    BACKBONE_TABLE: "audio_embeddings.weight",
    DEPTH_TABLE: "audio_embeddings.weight",
    f"{DEPTH}.inputs_embeds_projector.weight": "projection.weight",
    "lm_head.weight": "codebook0_head.weight",
    "depth_decoder.codebooks_head.weight": "audio_head",
}


def is_sesame_format(stored: TensorMap) -> bool:
    """Whether tensors have Sesame's names; both formats use the same file names."""
    return "audio_head" in stored or "codebook0_head.weight" in stored


def sesame_name(name: str) -> str:
    """Sesame's name of a tensor that transformers calls `name`."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    for table in (_STACK_PREFIXES, _STACK_NAMES):
        part = next((part for part in table if part in name), None)
        name = name.replace(part, table[part]) if part else name
    return name


def convert_sesame(stored: TensorMap, config: ModelConfig, where: str) -> TensorMap:
    """Sesame's tensors under transformers' names, query and key weights in transformers' order.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, by Sesame's name.
    """
    tensors = match_tensors(stored, config, where, sesame_name)
    for stack, sizes in ((BACKBONE, config.backbone), (DEPTH, config.depth)):
        for layer in range(sizes.layers):
            for name in (f"{stack}.layers.{layer}.self_attn.{kind}_proj.weight" for kind in "qk"):
                tensors[name] = replace(tensors[name], read=partial(_to_halves, tensors[name], sizes.head_dim))
    return tensors


def _to_halves(stored: StoredTensor, head_dim: int) -> Tensor:
    """Output dimensions of each head from interleaved pairs (0, 1), (2, 3).. to two halves: all even ones, then odd."""
    weight = stored.read()  # [heads * head_dim, hidden]
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _to_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `_to_halves`."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def sesame_tensors(weights: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `convert_sesame`.

    Raises:
        CheckpointInvalid: two different audio tables where Sesame's format has one, or another RoPE than csm-1b's.
    """
    if not weights[BACKBONE_TABLE].equal(weights[DEPTH_TABLE]):
        raise CheckpointInvalid("the model has two audio tables, and Sesame's format holds one; export to transformers")
    _check_rope(config)
    for name in weights:
        if name != DEPTH_TABLE:
            tensor = weights[name]
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                sizes = config.backbone if name.startswith(BACKBONE) else config.depth
                tensor = _to_pairs(tensor, sizes.head_dim)
            yield sesame_name(name), tensor


def _check_rope(config: ModelConfig) -> None:
    """Sesame's format has no RoPE settings: they have to be csm-1b's."""
    from csm_cli.models.csm.transformer import inverse_frequencies

    for stack, rope in ((config.backbone, _BACKBONE_ROPE), (config.depth, _DEPTH_ROPE)):
        wanted, found = (inverse_frequencies(each, stack.head_dim) for each in (rope, stack.rope))
        if not wanted.allclose(found, rtol=1e-5, atol=0):
            raise CheckpointInvalid("the model's RoPE is not csm-1b's, which Sesame's format requires")


def sesame_config(config: ModelConfig, raw: Json) -> dict[str, Any]:
    """Sesame's keys of config.json in addition to transformers' (`raw`), as in sesame/csm-1b."""
    flavors: dict[str, Any] = {}
    for name, sizes in (("backbone", config.backbone), ("decoder", config.depth)):
        own = Flavor(sizes.layers, sizes.heads, sizes.kv_heads, sizes.hidden, sizes.intermediate)
        flavor = next((name for name, each in FLAVORS.items() if each == own), None)
        flavors[f"{name}_flavor"] = flavor or "custom"
        if flavor is None:
            flavors[f"{name}_head_dim"] = sizes.head_dim
    return {
        **raw,
        **flavors,
        "text_vocab_size": config.text_vocab,
        "audio_vocab_size": config.vocab,
        "audio_num_codebooks": config.codebooks,
    }


def transformers_config(config: Json, stored: TensorMap, codec: Json) -> dict[str, Any]:
    """transformers' config.json for Sesame's tensors: sizes from their shapes, which tell the flavors.

    Shapes do not tell the size of a head. It is the flavor's; `backbone_head_dim` and `decoder_head_dim` in the config
    stand in for it in models that are not of the published family.

    Raises:
        CheckpointInvalid: sizes of no known model, or tensors that are missing or do not fit the config.
    """
    text, head = _shape(stored, "text_embeddings.weight", 2), _shape(stored, "audio_head", 3)
    codebooks, vocab = head[0] + 1, head[2]
    flavors = {stack: _find_flavor(config, stored, stack) for stack in ("backbone", "decoder")}
    pair = (flavors["backbone"], flavors["decoder"])
    is_known = None in pair or pair in {(each.backbone, each.decoder) for each in FAMILY}
    if not is_known and config.get("csm_prompt_style") is None:
        hint = 'add "csm_prompt_style": "plain" or "spaced" to config.json'
        raise CheckpointInvalid(f"{pair[0]} with {pair[1]} is no known CSM, so its prompts are unknown; {hint}")
    style = {"csm_prompt_style": config["csm_prompt_style"]} if "csm_prompt_style" in config else {}
    return {
        "model_type": "csm",
        **style,
        **_stack_config(config, stored, "backbone", flavors["backbone"]),
        "max_position_embeddings": _POSITIONS,
        "rope_parameters": _rope_parameters(_BACKBONE_ROPE),
        "num_codebooks": codebooks,
        "vocab_size": vocab,
        "text_vocab_size": text[0],
        **_TEXT_IDS,
        "codec_config": dict(codec),
        "depth_decoder_config": {
            **_stack_config(config, stored, "decoder", flavors["decoder"]),
            "max_position_embeddings": codebooks + 1,
            "rope_parameters": _rope_parameters(_DEPTH_ROPE),
            "num_codebooks": codebooks,
            "vocab_size": vocab,
            "backbone_hidden_size": text[1],
        },
    }


def family_config(model: FamilyModel) -> ModelConfig:
    """The sizes of a published model, without its checkpoint."""
    backbone, decoder = FLAVORS[model.backbone], FLAVORS[model.decoder]
    sizes: Shapes = {"text_embeddings.weight": (model.text_vocab, backbone.hidden)}
    sizes["audio_head"] = (model.codebooks - 1, decoder.hidden, model.vocab)
    for stack, flavor in (("backbone", backbone), ("decoder", decoder)):
        layers, queries, keys, hidden, intermediate = flavor.shape
        for layer in range(layers):
            sizes[f"{stack}.layers.{layer}.attn.q_proj.weight"] = (queries, hidden)
            sizes[f"{stack}.layers.{layer}.attn.k_proj.weight"] = (keys, hidden)
            sizes[f"{stack}.layers.{layer}.mlp.w1.weight"] = (intermediate, hidden)
    stored = {name: StoredTensor(shape, _no_data, Path(model.id)) for name, shape in sizes.items()}
    return model_config(transformers_config({}, stored, {}))


def _no_data() -> Tensor:
    raise NotImplementedError  # shapes are all there is


def _rope_parameters(rope: Rope) -> Json:
    return {
        "rope_type": "llama3",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_seq_len,
    }


def _stack_shape(stored: TensorMap, stack: str) -> tuple[int, ...]:
    """Layers, query and key dimensions, hidden and intermediate size, as `Flavor.shape`."""
    first = f"{stack}.layers.0"
    queries, hidden = _shape(stored, f"{first}.attn.q_proj.weight", 2)
    keys, _ = _shape(stored, f"{first}.attn.k_proj.weight", 2)
    layers = {name.split(".")[2] for name in stored if name.startswith(f"{stack}.layers.")}
    return (len(layers), queries, keys, hidden, _shape(stored, f"{first}.mlp.w1.weight", 2)[0])


def _find_flavor(config: Json, stored: TensorMap, stack: str) -> str | None:
    """The flavor that config.json names or, without a config, that of the tensors' shapes; None for a given head size.

    Raises:
        CheckpointInvalid: an unknown flavor, shapes that are not its own, or shapes of no flavor.
    """
    if config.get(f"{stack}_head_dim") is not None:
        return None
    shape = _stack_shape(stored, stack)
    found = next((name for name, flavor in FLAVORS.items() if flavor.shape == shape), None)
    named = config.get(f"{stack}_flavor", found)
    kinds = ("layers", "query and", "key dimensions", "wide, MLP of")
    sizes = " ".join(f"{size} {kind}".strip() for size, kind in zip(shape, (*kinds, ""), strict=True))
    if named is not None and (not isinstance(named, str) or named not in FLAVORS):
        known = ", ".join(FLAVORS)
        raise CheckpointInvalid(
            f"config.json: {stack}_flavor {named!r:.60} is unknown (known: {known}); add {stack}_head_dim"
        )
    if named is None:
        hint = f"add a config.json with {stack}_head_dim, the size of its heads"
        raise CheckpointInvalid(f"the {stack} has {sizes}: no known CSM ({', '.join(m.id for m in FAMILY)}); {hint}")
    if named != found:
        hint = f"correct it, or add {stack}_head_dim"
        raise CheckpointInvalid(f"config.json: {stack}_flavor is {named}, but the {stack} has {sizes}; {hint}")
    return named


def _stack_config(config: Json, stored: TensorMap, stack: str, flavor: str | None) -> dict[str, Any]:
    layers, queries, keys, hidden, intermediate = _stack_shape(stored, stack)
    head_dim = config[f"{stack}_head_dim"] if flavor is None else FLAVORS[flavor].head_dim
    if isinstance(head_dim, bool) or not isinstance(head_dim, int) or head_dim <= 0:
        raise CheckpointInvalid(f"config.json: {stack}_head_dim is {head_dim!r:.40}; must be a whole number above 0")
    if queries % head_dim or keys % head_dim:
        raise CheckpointInvalid(
            f"{stack}: {queries} query and {keys} key dimensions do not divide into heads of {head_dim}"
        )
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": queries // head_dim,
        "num_key_value_heads": keys // head_dim,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
    }


def _shape(stored: TensorMap, name: str, dims: int) -> tuple[int, ...]:
    if name not in stored:
        raise CheckpointInvalid(f"tensor {name} is missing: not a whole checkpoint in Sesame's original format")
    if len(stored[name].shape) != dims:
        raise CheckpointInvalid(
            f"{stored[name].file}: tensor {name} has {len(stored[name].shape)} dimensions, not {dims}"
        )
    return stored[name].shape
