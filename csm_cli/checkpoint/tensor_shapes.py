"""Which tensors make a CSM: transformers' on-disk names, their shapes, and what is wrong with a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from csm_cli.errors import CheckpointInvalid

if TYPE_CHECKING:
    from csm_cli.checkpoint.weights import StoredTensor, TensorMap
    from csm_cli.models.csm.config import ModelConfig, StackConfig

BACKBONE, DEPTH = "backbone_model", "depth_decoder.model"
BACKBONE_TABLE = f"{BACKBONE}.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = f"{DEPTH}.embed_tokens.weight"

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of the model by transformers' on-disk name; the codec's are not among them."""
    hidden, depth_hidden = config.backbone.hidden, config.depth.hidden
    return {
        "embed_text_tokens.weight": (config.text_vocab, hidden),
        BACKBONE_TABLE: (config.codebooks * config.vocab, hidden),
        DEPTH_TABLE: (config.codebooks * config.vocab, hidden),
        f"{DEPTH}.inputs_embeds_projector.weight": (depth_hidden, hidden),
        "lm_head.weight": (config.vocab, hidden),
        "depth_decoder.codebooks_head.weight": (config.codebooks - 1, depth_hidden, config.vocab),
        **_stack_shapes(BACKBONE, config.backbone),
        **_stack_shapes(DEPTH, config.depth),
    }


def _stack_shapes(prefix: str, stack: StackConfig) -> Shapes:
    hidden, inner = stack.hidden, stack.intermediate
    queries, keys = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
    layer = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes: Shapes = {
        f"{prefix}.layers.{index}.{name}": shape for index in range(stack.layers) for name, shape in layer.items()
    }
    return {**shapes, f"{prefix}.norm.weight": (hidden,)}


def check_shapes(stored: TensorMap, config: ModelConfig, where: str) -> TensorMap:
    """The tensors of a checkpoint in transformers format; a table stored once gets both its names.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, or tables that should be tied and differ.
    """
    table = stored.get(DEPTH_TABLE) or stored.get(BACKBONE_TABLE)
    if config.tied and table:
        stored = {BACKBONE_TABLE: table, DEPTH_TABLE: table, **stored}
    tensors = match_tensors(stored, config, where, str)
    if config.tied and not _same(tensors[BACKBONE_TABLE], tensors[DEPTH_TABLE]):
        raise CheckpointInvalid(
            f"{where}: {BACKBONE_TABLE} and {DEPTH_TABLE} differ, but config.json ties them; export it again"
        )
    return tensors


def match_tensors(
    stored: TensorMap, config: ModelConfig, where: str, on_disk: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """A CSM's tensors by transformers' names, from tensors named as `on_disk` says.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, by its name on disk.
    """
    shapes = expected_shapes(config)
    places = {name: on_disk(name) for name in shapes}
    _refuse(f"{where} lacks", [place for place in places.values() if place not in stored])
    _refuse(f"{where} holds, unexpectedly,", sorted(set(stored) - set(places.values())))
    for name, shape in shapes.items():
        found = stored[places[name]]
        if found.shape != shape:
            raise CheckpointInvalid(
                f"{found.file}: tensor {places[name]} is {list(found.shape)}, config.json asks for {list(shape)}"
            )
    return {name: stored[place] for name, place in places.items()}


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    return one is other or one.read().equal(other.read())


def _refuse(diagnostic: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointInvalid(f"{diagnostic} tensor {names[0]}{more}: not the CSM its config.json describes")
