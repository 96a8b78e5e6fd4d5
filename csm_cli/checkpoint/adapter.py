"""LoRA adapters in peft's format, laid over a checkpoint's tensors as they are read; peft itself is not needed.

Source of the format: peft's `LoraConfig`, `LoraModel` and `get_peft_model_state_dict`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from csm_cli.checkpoint.find import locate, require_file
from csm_cli.checkpoint.tensor_shapes import BACKBONE_TABLE, DEPTH_TABLE
from csm_cli.checkpoint.weights import StoredTensor, TensorMap, read_json, read_weights
from csm_cli.errors import CheckpointInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from csm_cli.models.csm.config import Json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_CODEC = "codec_model."
_BASE = ".base_layer."  # peft keeps the model's own tensor too where a table or the last linear is adapted
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_FOREIGN = ("use_dora", "fan_in_fan_out", "lora_bias", "target_parameters", "trainable_token_indices")


@dataclass(frozen=True)
class _Pair:
    """The two factors of a module's change."""

    a: StoredTensor
    b: StoredTensor
    embedding: bool

    def change(self, scale: float) -> Tensor:
        """[out, in] of a linear, [rows, width] of an embedding; float32."""
        product = (self.b.read().float() @ self.a.read().float()) * scale
        return product.T if self.embedding else product


def merge_adapter(tensors: TensorMap, name: str, tied: bool, offline: bool = False) -> TensorMap:
    """`tensors` with the adapter called `name`, a directory or Hugging Face id, merged into them in float32.

    Raises:
        ModelNotFound, ModelGated, ModelOffline: the adapter cannot be had.
        CheckpointInvalid: it is none, of a kind that is not merged here, or for another model.
    """
    source = locate(name, offline=offline)
    config = read_json(require_file(source, CONFIG))
    _refuse_foreign(config, name)
    pairs, whole = _parts(read_weights(source, require_file(source, WEIGHTS)), name)
    merged = dict(tensors)
    for place, stored in whole.items():
        if _target(tensors, place, name).shape != stored.shape:
            raise _misfit(name, place, stored.shape, tensors[place].shape)
        merged[place] = stored
    for module, pair in pairs.items():
        place = f"{module}.weight"
        if module.startswith(_CODEC):
            _refuse_codec(pair, name)
        else:
            stored = _target(merged, place, name)
            _fit(stored, pair, place, name)
            scale = _scale(config, module, pair.a.shape[0])
            # its file counts for what the checkpoint is; the model's own is known by the tensors that stay
            merged[place] = replace(stored, read=partial(_sum, stored, pair, scale), file=pair.b.file)
    return _with_one_table(merged, tensors) if tied else merged


def _refuse_foreign(config: Json, name: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointInvalid(f"{name}: is an adapter of type {kind}; only LoRA is merged here")
    for key in _FOREIGN:
        if config.get(key):
            raise CheckpointInvalid(f"{name}: uses {key}, which is not merged here; merge it with peft first")


def _parts(stored: TensorMap, name: str) -> tuple[dict[str, _Pair], dict[str, StoredTensor]]:
    """Pairs by the module they change, and tensors that replace the model's own."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    embeddings, whole = set(), {}
    for key, tensor in stored.items():
        place = key.removeprefix(_PREFIX)
        found = _PART.fullmatch(place)
        if found is None:
            whole[place.replace(_BASE, ".")] = tensor
            continue
        halves.setdefault(found["module"], {})[found["side"]] = tensor
        if found["embedding"]:
            embeddings.add(found["module"])
    lone = next((module for module, pair in halves.items() if len(pair) < 2), None)
    if lone is not None:
        raise CheckpointInvalid(f"{name}: {lone} has only one of its two factors; export the adapter again")
    pairs = {module: _Pair(pair["A"], pair["B"], module in embeddings) for module, pair in halves.items()}
    return pairs, whole


def _target(tensors: TensorMap, place: str, name: str) -> StoredTensor:
    if place not in tensors:
        raise CheckpointInvalid(f"{name}: changes {place}, which the model has not; name the model it was made for")
    return tensors[place]


def _fit(stored: StoredTensor, pair: _Pair, place: str, name: str) -> None:
    inner, outer = pair.a.shape[-1], pair.b.shape[0]
    shape = (inner, outer) if pair.embedding else (outer, inner)
    if stored.shape != shape or pair.a.shape[0] != pair.b.shape[-1]:
        raise _misfit(name, place, shape, stored.shape)


def _misfit(name: str, place: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> CheckpointInvalid:
    sizes = f"{place} is {list(found)}, the model's {list(wanted)}"
    return CheckpointInvalid(f"{name}: {sizes}; name the model it was made for")


def _scale(config: Json, module: str, rank: int) -> float:
    """lora_alpha over the rank, or its root; patterns are peft's, ends of module names."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    own = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(own, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _refuse_codec(pair: _Pair, name: str) -> None:
    """A change of the codec, which training never reaches: there where modules are named by their ends alone."""
    if pair.b.read().any():
        raise CheckpointInvalid(f"{name}: changes the codec; merge it with peft first")


def _sum(stored: StoredTensor, pair: _Pair, scale: float) -> Tensor:
    return stored.read().float() + pair.change(scale)


def _with_one_table(merged: dict[str, StoredTensor], before: TensorMap) -> TensorMap:
    """Tied tables stay one, whichever of them the adapter changes."""
    changed = next((name for name in (BACKBONE_TABLE, DEPTH_TABLE) if merged[name] is not before[name]), None)
    return {**merged, BACKBONE_TABLE: merged[changed], DEPTH_TABLE: merged[changed]} if changed else merged
