"""Sesame's original format: torchtune's names, RoPE over interleaved pairs, neither codec nor tokenizer.

Source: github.com/SesameAILabs/csm (models.py) and torchtune's Llama 3.2. RoPE there scales by 32 between the factors
1 and 4 of 8192 positions; the numbers below are the same curve for the windows of 2048 positions and K + 1, as in the
published conversion of csm-1b.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.tensor_shapes import BACKBONE, BACKBONE_TABLE, DEPTH, DEPTH_TABLE, match_tensors
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import Rope

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from csm_cli.checkpoint.weights import StoredTensor, TensorMap
    from csm_cli.models.csm.config import Json, ModelConfig

CODEC_FILE = "codec.safetensors"
"""Beside original tensors, which include no codec: this program's own addition, which other readers pass over."""

_HEAD_SIZES = {"llama-1B": 64, "llama-100M": 128}
_FLAVORS = {"llama-1B": (16, 32, 8, 2048, 8192), "llama-100M": (4, 8, 2, 1024, 8192)}
"""Layers, heads, key-value heads, hidden and intermediate size."""
_ROPE: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
_BACKBONE_ROPE = {**_ROPE, "low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
_DEPTH_ROPE = {
    **_ROPE,
    "low_freq_factor": 0.001953125,
    "high_freq_factor": 0.0078125,
    "original_max_position_embeddings": 16,
}
_POSITIONS = 2048
_TEXT_IDS = {"audio_token_id": 128002, "audio_eos_token_id": 128003}

_STACKS = {f"{BACKBONE}.": "backbone.", f"{DEPTH}.": "decoder."}
_IN_STACK = {
    "self_attn.o_proj.weight": "attn.output_proj.weight",
    "self_attn.": "attn.",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale",
    "norm.weight": "norm.scale",
}
_OUTSIDE = {
    "embed_text_tokens.weight": "text_embeddings.weight",
    BACKBONE_TABLE: "audio_embeddings.weight",
    DEPTH_TABLE: "audio_embeddings.weight",
    f"{DEPTH}.inputs_embeds_projector.weight": "projection.weight",
    "lm_head.weight": "codebook0_head.weight",
    "depth_decoder.codebooks_head.weight": "audio_head",
}


def is_original(stored: TensorMap) -> bool:
    """Told by the tensors' names: both formats are found in files of the same name."""
    return "audio_head" in stored or "codebook0_head.weight" in stored


def original_name(name: str) -> str:
    """The original format's name of a tensor that transformers calls `name`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    for table in (_STACKS, _IN_STACK):
        found = next((part for part in table if part in name), None)
        name = name.replace(found, table[found]) if found else name
    return name


def convert_sesame(stored: TensorMap, config: ModelConfig, where: str) -> TensorMap:
    """Original tensors under transformers' names, query and key rows in transformers' order.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, by its original name.
    """
    tensors = match_tensors(stored, config, where, original_name)
    for stack, sizes in ((BACKBONE, config.backbone), (DEPTH, config.depth)):
        for layer in range(sizes.layers):
            for name in (f"{stack}.layers.{layer}.self_attn.{kind}_proj.weight" for kind in "qk"):
                tensors[name] = replace(tensors[name], read=partial(_halves, tensors[name], sizes.head_dim))
    return tensors


def _halves(stored: StoredTensor, head_dim: int) -> Tensor:
    """Rows of each head from interleaved pairs (0, 1), (2, 3).. to two halves: first all evens, then all odds."""
    weight = stored.read()  # [heads * head_dim, hidden]
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _pairs(weight: Tensor, head_dim: int) -> Tensor:
    """What `_halves` was made of."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def original_tensors(weights: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a CSM, given by transformers' names, under their original ones and in the original order of rows.

    Raises:
        CheckpointInvalid: two tables where the original format has one, or RoPE it has no place for.
    """
    if not weights[BACKBONE_TABLE].equal(weights[DEPTH_TABLE]):
        raise CheckpointInvalid("the model has two audio tables, and Sesame's format holds one; export to transformers")
    _refuse_rope(config)
    for name in weights:
        if name != DEPTH_TABLE:
            tensor = weights[name]
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                sizes = config.backbone if name.startswith(BACKBONE) else config.depth
                tensor = _pairs(tensor, sizes.head_dim)
            yield original_name(name), tensor


def _refuse_rope(config: ModelConfig) -> None:
    """Sesame's format does not say how positions turn: it has to be as its own model's."""
    from csm_cli.models.csm.transformer import inverse_frequencies

    for stack, rope in ((config.backbone, _BACKBONE_ROPE), (config.depth, _DEPTH_ROPE)):
        own = Rope(
            float(rope["rope_theta"]),
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
        wanted, found = (inverse_frequencies(each, stack.head_dim) for each in (own, stack.rope))
        if not wanted.allclose(found, rtol=1e-5, atol=0):
            raise CheckpointInvalid("the model's RoPE is not csm-1b's, which Sesame's format takes for granted")


def original_config(config: ModelConfig, raw: Json) -> dict[str, Any]:
    """Sesame's config.json, beside transformers' own in the same object, as sesame/csm-1b has it."""
    flavors: dict[str, Any] = {}
    for name, sizes in (("backbone", config.backbone), ("decoder", config.depth)):
        shape = (sizes.layers, sizes.heads, sizes.kv_heads, sizes.hidden, sizes.intermediate)
        known = next((flavor for flavor, found in _FLAVORS.items() if found == shape), None)
        flavors[f"{name}_flavor"] = known or "custom"
        if known is None:
            flavors[f"{name}_head_dim"] = sizes.head_dim
    return {
        **raw,
        **flavors,
        "text_vocab_size": config.text_vocab,
        "audio_vocab_size": config.vocab,
        "audio_num_codebooks": config.codebooks,
    }


def transformers_config(config: Json, stored: TensorMap, codec: Json) -> dict[str, Any]:
    """transformers' config.json for original tensors: sizes from their shapes, head sizes from the config's flavors.

    `backbone_head_dim` and `decoder_head_dim` in the config stand in for flavors other than Sesame's two; without a
    config the flavors are csm-1b's.

    Raises:
        CheckpointInvalid: an unknown flavor, or tensors that are missing or do not fit the head size.
    """
    text, head = _shape(stored, "text_embeddings.weight", 2), _shape(stored, "audio_head", 3)
    books, vocab = head[0] + 1, head[2]
    depth = _stack(stored, "decoder", _head_dim(config, "decoder", "llama-100M"))
    return {
        "model_type": "csm",
        **_stack(stored, "backbone", _head_dim(config, "backbone", "llama-1B")),
        "max_position_embeddings": _POSITIONS,
        "rope_parameters": _BACKBONE_ROPE,
        "num_codebooks": books,
        "vocab_size": vocab,
        "text_vocab_size": text[0],
        **_TEXT_IDS,
        "codec_config": dict(codec),
        "depth_decoder_config": {
            **depth,
            "max_position_embeddings": books + 1,
            "rope_parameters": _DEPTH_ROPE,
            "num_codebooks": books,
            "vocab_size": vocab,
            "backbone_hidden_size": text[1],
        },
    }


def _head_dim(config: Json, stack: str, default: str) -> int:
    flavor = config.get(f"{stack}_flavor", default)
    size = config.get(f"{stack}_head_dim") or _HEAD_SIZES.get(flavor)
    if not isinstance(size, int) or size <= 0:
        known = " and ".join(_HEAD_SIZES)
        raise CheckpointInvalid(
            f"config.json: {stack}_flavor {flavor!r} is unknown (known: {known}); add {stack}_head_dim"
        )
    return size


def _stack(stored: TensorMap, stack: str, head_dim: int) -> dict[str, Any]:
    first = f"{stack}.layers.0"
    queries, hidden = _shape(stored, f"{first}.attn.q_proj.weight", 2)
    keys, _ = _shape(stored, f"{first}.attn.k_proj.weight", 2)
    if queries % head_dim or keys % head_dim:
        raise CheckpointInvalid(f"{first}: {queries} query and {keys} key rows do not divide into heads of {head_dim}")
    layers = {name.split(".")[2] for name in stored if name.startswith(f"{stack}.layers.")}
    return {
        "num_hidden_layers": len(layers),
        "hidden_size": hidden,
        "num_attention_heads": queries // head_dim,
        "num_key_value_heads": keys // head_dim,
        "head_dim": head_dim,
        "intermediate_size": _shape(stored, f"{first}.mlp.w1.weight", 2)[0],
    }


def _shape(stored: TensorMap, name: str, dims: int) -> tuple[int, ...]:
    if name not in stored:
        raise CheckpointInvalid(f"tensor {name} is missing: not a whole checkpoint in Sesame's original format")
    if len(stored[name].shape) != dims:
        raise CheckpointInvalid(
            f"{stored[name].file}: tensor {name} has {len(stored[name].shape)} dimensions, not {dims}"
        )
    return stored[name].shape
