"""Tensors of a checkpoint: read lazily from safetensors and PyTorch files, checked by name and shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.find import Source, require_file
from csm_cli.checkpoint.pytorch_files import read_pytorch
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import ModelConfig, StackConfig
from csm_cli.storage import untrusted

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE, DEPTH = "backbone_model", "depth_decoder.model"
BACKBONE_TABLE = f"{BACKBONE}.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = f"{DEPTH}.embed_tokens.weight"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; `read` maps it into memory."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    file: Path


TensorMap = Mapping[str, StoredTensor]


class CheckpointWeights(Mapping[str, "Tensor"]):
    """Tensors by name; each access maps its tensor from disk."""

    def __init__(self, stored: TensorMap) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def files(self) -> set[Path]:
        """The files that hold them."""
        return {stored.file for stored in self._stored.values()}


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointInvalid where the file is not one JSON object."""
    try:
        value = untrusted.read_json(path)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointInvalid(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"{path} is not a JSON object")
    return value


def read_weights(source: Source, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, of the shards of an index, or of a PyTorch file.

    Raises:
        CheckpointInvalid: a damaged file, a missing shard, or a shard that lacks a tensor of the index.
    """
    if path.suffix != ".json":
        return _read_file(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointInvalid(f'{path} has no "weight_map": not an index of shards')
    shards = {file: _read_file(require_file(source, file)) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise CheckpointInvalid(f"{file} has no tensor {name}, which {path} says it holds")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _read_file(path: Path) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return {
        name: StoredTensor(tuple(tensor.shape), partial(lambda same: same, tensor), path)
        for name, tensor in read_pytorch(path).items()
    }


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointInvalid(f"{path} is damaged or not a safetensors file ({error}); get it again") from error
    return {
        name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name), path)
        for name in names
    }


def expected_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of the model by transformers' name on disk; the codec's are not among them."""
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
    """The tensors of a checkpoint in transformers' format; a tied table that is stored once gets both its names.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, or tied tables that differ.
    """
    table = stored.get(DEPTH_TABLE) or stored.get(BACKBONE_TABLE)
    if config.tied and table:
        stored = {BACKBONE_TABLE: table, DEPTH_TABLE: table, **stored}
    tensors = match_tensors(stored, config, where, str)
    one, other = tensors[BACKBONE_TABLE], tensors[DEPTH_TABLE]
    if config.tied and one is not other and not one.read().equal(other.read()):
        tables = f"{BACKBONE_TABLE} and {DEPTH_TABLE}"
        raise CheckpointInvalid(f"{where}: {tables} differ, but config.json ties them; export it again")
    return tensors


def match_tensors(
    stored: TensorMap, config: ModelConfig, where: str, name_on_disk: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """A CSM's tensors by transformers' names; `name_on_disk` maps these to the names in `stored`.

    Raises:
        CheckpointInvalid: a missing, unexpected or badly shaped tensor, by its name on disk.
    """
    shapes = expected_shapes(config)
    names = {name: name_on_disk(name) for name in shapes}
    missing = [name for name in names.values() if name not in stored]
    unexpected = sorted(set(stored) - set(names.values()))
    for problem, found in (("lacks", missing), ("holds, unexpectedly,", unexpected)):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CheckpointInvalid(f"{where} {problem} tensor {found[0]}{more}: not the CSM its config.json describes")
    for name, shape in shapes.items():
        tensor = stored[names[name]]
        if tensor.shape != shape:
            sizes = f"is {list(tensor.shape)}, config.json asks for {list(shape)}"
            raise CheckpointInvalid(f"{tensor.file}: tensor {names[name]} {sizes}")
    return {name: stored[on_disk] for name, on_disk in names.items()}
