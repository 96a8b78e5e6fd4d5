"""LoRA adapters in peft's format, merged into a checkpoint's tensors as they are read; peft itself is not needed.

Source of the format: peft's `LoraConfig`, `LoraModel` and `get_peft_model_state_dict`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.find import LocalFolder, Source, find_source, require_file
from csm_cli.checkpoint.names import own_names
from csm_cli.checkpoint.weights import BACKBONE_TABLE, DEPTH_TABLE, StoredTensor, TensorMap, read_json, read_weights
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import Json
from csm_cli.models.limits import MAX_MODULE_PATTERN, MAX_MODULE_PATTERNS

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHT_FILES = (WEIGHTS, "adapter_model.bin")
_CODEC_PREFIX = "codec_model."
_DEFAULT_ALPHA = 8  # peft's, where adapter_config.json does not name it
_SESAME_PREFIXES = ("backbone.", "decoder.", "text_embeddings.", "audio_embeddings.", "codebook0_head.", "projection.")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_SAFE_PATTERN = re.compile(rf"\^?(?:[\w|.]|\\\.|\\d\+?|\.\*){{1,{MAX_MODULE_PATTERN}}}\$?")
_WILDCARD = re.compile(r"\.\*|\\d\+")
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "lora_bias", "target_parameters", "trainable_token_indices")


@dataclass(frozen=True)
class _LoraFactors:
    """The factors of one module: a [rank, in], b [out, rank]."""

    a: StoredTensor
    b: StoredTensor
    embedding: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor they change: [out, in] of a linear, [entries, width] of an embedding."""
        inner, outer = self.a.shape[-1], self.b.shape[0]
        return (inner, outer) if self.embedding else (outer, inner)

    def add_to(self, stored: StoredTensor, scale: float) -> Tensor:
        """The merged tensor, float32."""
        product = (self.b.read().float() @ self.a.read().float()) * scale
        return stored.read().float() + (product.T if self.embedding else product)


def merge_adapter(tensors: TensorMap, adapter: str, tied: bool, offline: bool = False) -> TensorMap:
    """`tensors` with an adapter, a directory or Hugging Face id, merged into them in float32.

    tied: the two audio tables stay one, whichever the adapter changes.

    Raises:
        ModelNotFound, ModelGated, ModelOffline: the adapter is not available.
        CheckpointInvalid: it is not a LoRA adapter, uses an unsupported option, or is for another model.
    """
    source = find_source(adapter, offline=offline)
    config = _read_config(source, adapter)
    if unsupported := next((key for key in _UNSUPPORTED if config.get(key)), None):
        raise CheckpointInvalid(f"{adapter}: uses {unsupported}, which is not supported; merge it with peft first")
    file = _require(source, _WEIGHT_FILES if source.weights is None else (source.weights,), adapter)
    factors, replaced = _split(own_names(read_weights(source, file), str(file)), adapter)
    _check_whole(config, {*factors, *(name.rpartition(".")[0] for name in replaced)}, str(file))
    merged = dict(tensors)
    for name, stored in replaced.items():
        _check_fit(tensors, name, stored.shape, adapter)
        merged[name] = stored
    for module, pair in factors.items():
        name = f"{module}.weight"
        if module.startswith(_CODEC_PREFIX):  # adapted where modules are selected by the ends of their names alone
            if pair.b.read().any():
                raise CheckpointInvalid(f"{adapter}: changes the codec; merge it with peft first")
            continue
        _check_fit(merged, name, pair.shape, adapter)
        if pair.a.shape[0] != pair.b.shape[-1]:
            raise CheckpointInvalid(f"{adapter}: the factors of {name} differ in rank; export the adapter again")
        scale = _scale(config, module, pair.a.shape[0], adapter)
        # `file` is the adapter's, so that the checkpoint's fingerprint covers it
        merged[name] = replace(merged[name], read=partial(pair.add_to, merged[name], scale), file=pair.b.file)
    if tied:
        changed = next((name for name in (BACKBONE_TABLE, DEPTH_TABLE) if merged[name] is not tensors[name]), None)
        if changed:
            merged |= {BACKBONE_TABLE: merged[changed], DEPTH_TABLE: merged[changed]}
    return merged


def _require(source: Source, names: Sequence[str], adapter: str) -> Path:
    """The first of these files of an adapter that exists."""
    found = next((path for name in names if (path := source.find(name))), None)
    if found is None and isinstance(source, LocalFolder):
        whole = source.find("config.json") or source.find("model.safetensors")
        hint = "it is a whole checkpoint: name it with --model" if whole else "save the adapter with peft again"
        raise CheckpointInvalid(f"{source.path} has no {names[0]}: not an adapter in peft's format; {hint}")
    return found or require_file(source, names[0])


def _read_config(source: Source, adapter: str) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter; raises CheckpointInvalid for anything else."""
    config = read_json(_require(source, (CONFIG,), adapter))
    kind = config.get("peft_type")
    if kind is None:
        raise CheckpointInvalid(f"{adapter}: {CONFIG} has no peft_type: not an adapter in peft's format")
    if kind != "LORA":
        raise CheckpointInvalid(f"{adapter}: is an adapter of type {str(kind)[:40]}; only LoRA can be merged")
    return config


def _check_whole(config: Json, modules: Collection[str], file: str) -> None:
    """Raises CheckpointInvalid where a module that was trained as a whole is not in the file."""
    wanted = config.get("modules_to_save") or ()
    for name in wanted if isinstance(wanted, list | tuple) else (wanted,):
        if not any(f".{name}." in f".{module}." for module in modules):
            raise CheckpointInvalid(f"{file} has no tensor of {name!r:.60}, which modules_to_save names; save it again")


def _split(stored: TensorMap, adapter: str) -> tuple[dict[str, _LoraFactors], dict[str, StoredTensor]]:
    """Factors by the module they change, and tensors that replace the model's own."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    embeddings, replaced = set(), {}
    for name, tensor in stored.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            replaced[name] = tensor
            continue
        halves.setdefault(match["module"], {})[match["side"]] = tensor
        if match["embedding"]:
            embeddings.add(match["module"])
    incomplete = next((module for module, pair in halves.items() if len(pair) < 2), None)
    if incomplete is not None:
        raise CheckpointInvalid(f"{adapter}: {incomplete} has only one of its two factors; export the adapter again")
    flat = next(
        (module for module, pair in halves.items() if any(len(t.shape) != 2 or 0 in t.shape for t in pair.values())),
        None,
    )
    if flat is not None:
        raise CheckpointInvalid(f"{adapter}: the factors of {flat} are not matrices; export the adapter again")
    factors = {module: _LoraFactors(pair["A"], pair["B"], module in embeddings) for module, pair in halves.items()}
    return factors, replaced


def _check_fit(tensors: TensorMap, name: str, shape: tuple[int, ...], adapter: str) -> None:
    if name not in tensors and name.startswith(_SESAME_PREFIXES):
        hint = "merge it there, and name the result with --model"
        raise CheckpointInvalid(f"{adapter}: changes {name}, a name of Sesame's own code; {hint}")
    if name not in tensors:
        raise CheckpointInvalid(f"{adapter}: changes {name}, which the model lacks; name the model it was made for")
    if tensors[name].shape != shape:
        sizes = f"{name} is {list(shape)}, the model's {list(tensors[name].shape)}"
        raise CheckpointInvalid(f"{adapter}: {sizes}; name the model it was made for")


def _scale(config: Json, module: str, rank: int, adapter: str) -> float:
    """lora_alpha over the rank, or its root; patterns are peft's, ends of module names.

    peft takes any regular expression, which may run for hours; these are names, alternatives, digits and two wildcards.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or len(patterns) > MAX_MODULE_PATTERNS:
        raise CheckpointInvalid(f"{adapter}: alpha_pattern must map up to {MAX_MODULE_PATTERNS} modules to numbers")
    for key in patterns:
        if not _SAFE_PATTERN.fullmatch(key) or len(_WILDCARD.findall(key)) > 2:
            raise CheckpointInvalid(f"{adapter}: alpha_pattern {key!r:.60} is not supported; merge it with peft first")
    own = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(own, config.get("lora_alpha", _DEFAULT_ALPHA))
    if alpha is None:
        hint = "write the number it was trained with"
        raise CheckpointInvalid(f"{adapter}: lora_alpha of {module} is null in {CONFIG}; {hint}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointInvalid(f"{adapter}: the alpha of {module} is {alpha!r:.40}; expected a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
