"""Load a checkpoint: from its config to its weights, with every tensor checked and one line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from csm_cli.checkpoint.adapter import merge_adapter
from csm_cli.checkpoint.find import BUNDLED, MIMI, MIRROR, HubRepository, Source, find_source, require_file
from csm_cli.checkpoint.names import model_tensors
from csm_cli.checkpoint.sesame import CODEC_FILE, convert_sesame, is_sesame_format, transformers_config
from csm_cli.checkpoint.weights import CheckpointWeights, TensorMap, check_shapes, read_json, read_weights
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import Json, ModelConfig, model_config
from csm_cli.settings import validate
from csm_cli.storage.fingerprint import Fingerprint
from csm_cli.types import GenerationOptions

_P = ParamSpec("_P")
_T = TypeVar("_T")
_CODEC_PREFIX = "codec_model."
_WEIGHT_FILES = (
    "transformers.safetensors.index.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "ckpt.pt",
    "model_final.pt",  # sesame-finetune
)
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TEMPERATURE, _TOP_K = 0.9, 50
_SAMPLES, _SAMPLE_BYTES = 64, 16384  # of each file, for the fingerprint


def _malformed_is_invalid(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Raises CheckpointInvalid where a value of a checkpoint's files has a type or size that nothing else refused."""

    @wraps(read)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise CheckpointInvalid(f"{args[0] if args else BUNDLED}: is not a CSM checkpoint ({reason})") from error

    return checked


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint without its weights.

    soft_limit: positions of context within which it speaks well (`csm_memory` in generation_config.json); 0 for all.
    """

    name: str
    config: ModelConfig
    tokenizer_file: Path
    soft_limit: int

    @property
    def positions(self) -> int:
        """Of its context window."""
        return self.config.backbone.max_seq_len


@dataclass(frozen=True)
class Checkpoint(CheckpointConfig):
    """A checkpoint whose tensors have been checked by name and shape, and are read when accessed.

    weights: by transformers' on-disk names; the audio table under both its names. codec_weights: the codec's, without
    the `codec_model.` prefix, not checked here. defaults: the options of its generation_config.json. revision: the
    commit on Hugging Face, None for a local checkpoint. config_json: config.json as transformers reads it.
    """

    codec_config: Json
    weights: CheckpointWeights
    codec_weights: CheckpointWeights
    defaults: GenerationOptions
    revision: str | None
    config_json: Json = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """64 digits that are equal where the checkpoint is, in any folder: its configs, and samples of its files."""
        digest = Fingerprint(repr((self.config, self.soft_limit)), self.codec_config)
        files = {*self.weights.files, *self.codec_weights.files, self.tokenizer_file}
        for path in sorted(files, key=lambda path: path.name):
            size = path.stat().st_size
            digest.add(size.to_bytes(8, "big"))
            with path.open("rb") as file:
                for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                    file.seek(offset)
                    digest.add(file.read(_SAMPLE_BYTES))
        return digest.hex(64)


@_malformed_is_invalid
def read_checkpoint_config(
    model: str | None = None, revision: str | None = None, offline: bool = False
) -> CheckpointConfig:
    """A checkpoint's sizes and tokenizer; its weights are neither fetched nor read if its config.json is complete.

    Raises:
        ModelError, UsageError: as `open_checkpoint`.
    """
    source = find_source(model, revision, offline)
    config = _read_config(source)
    if "model_type" in config:
        tokenizer = require_file(source, "tokenizer.json")
        return CheckpointConfig(source.name, _model_config(source, config), tokenizer, _soft_limit(source))
    return open_checkpoint(model, revision, offline=offline)


@_malformed_is_invalid
def open_checkpoint(
    model: str | None = None, revision: str | None = None, adapter: str | None = None, *, offline: bool = False
) -> Checkpoint:
    """Opens the bundled voice (None), a directory or weights file, or a Hugging Face id; `offline`: from the cache.

    adapter: a directory or Hugging Face id of a LoRA adapter, merged into the weights as they are read.

    Raises:
        ModelNotFound, ModelGated, ModelOffline: the checkpoint is not available.
        CheckpointInvalid: its files do not make a CSM.
        UsageError: a revision for a local checkpoint.
    """
    source = find_source(model, revision, offline)
    config_json = _read_config(source)
    file = _weights_file(source, config_json)
    every = model_tensors(read_weights(source, file), str(file), _CODEC_PREFIX)
    stored = {name: tensor for name, tensor in every.items() if not name.startswith(_CODEC_PREFIX)}
    codec: TensorMap = {
        name.removeprefix(_CODEC_PREFIX): tensor for name, tensor in every.items() if name not in stored
    }
    if sesame := is_sesame_format(stored):
        config_json, codec = _add_codec(source, config_json, stored, codec)
    elif not config_json:
        raise source.missing("config.json")
    from csm_cli.models.mimi.config import codec_config  # its package imports torch

    config = _model_config(source, config_json)
    codec_config(config_json["codec_config"])
    tensors = (convert_sesame if sesame else check_shapes)(stored, config, str(file))
    if adapter is not None:
        tensors = merge_adapter(tensors, adapter, config.tied, offline)
    tokenizer = source.find("tokenizer.json")
    if tokenizer is None:
        tokenizer = require_file(HubRepository(MIRROR, offline=offline) if sesame else source, "tokenizer.json")
    return Checkpoint(
        name=source.name if adapter is None else f"{source.name} with {adapter}",
        config=config,
        codec_config=config_json["codec_config"],
        weights=CheckpointWeights(tensors),
        codec_weights=CheckpointWeights(codec),
        tokenizer_file=tokenizer,
        defaults=generation_defaults(source),
        revision=source.revision,
        soft_limit=_soft_limit(source),
        config_json=config_json,
    )


def processor_files(model: str | None = None, revision: str | None = None, offline: bool = False) -> dict[str, Path]:
    """The files of a checkpoint that transformers' processor and `generate` read, by name: tokenizer, templates.

    Where a checkpoint in Sesame's format has none, they are csm-1b's. Raises as `open_checkpoint`.
    """
    source = find_source(model, revision, offline)
    found = {name: path for name in _PROCESSOR_FILES if (path := source.find(name))}
    if "tokenizer.json" in found or isinstance(source, HubRepository):
        return found
    mirror = HubRepository(MIRROR, offline=offline)
    return {name: path for name in _PROCESSOR_FILES if (path := mirror.find(name))}


def _read_config(source: Source) -> Json:
    """config.json, checked before weights are downloaded; empty if it does not exist."""
    path = source.find("config.json")
    if path is None:
        if adapter := source.find("adapter_config.json"):
            base = read_json(adapter).get("base_model_name_or_path") or "its base model"
            raise CheckpointInvalid(f"{source.name} is an adapter for {base}, not a model; name it with --adapter")
        return {}
    config = read_json(path)
    if "backbone_flavor" not in config:
        _model_config(source, config)
    return config


def _model_config(source: Source, config_json: Json) -> ModelConfig:
    try:
        return model_config(config_json)
    except CheckpointInvalid as error:
        raise CheckpointInvalid(f"{source.name}: {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointInvalid(f"{source.name}: config.json does not describe a CSM ({error})") from error


def _weights_file(source: Source, config_json: Json) -> Path:
    """The weights file that was named, else the one config.json names, else the first usual one."""
    if source.weights:
        return require_file(source, source.weights)
    named = config_json.get("transformers_weights")
    if isinstance(named, str):
        return require_file(source, named)
    found = next((path for name in _WEIGHT_FILES if (path := source.find(name))), None)
    if found is None:
        raise source.missing("model.safetensors" if config_json else "config.json")
    return found


def _add_codec(source: Source, config_json: Json, stored: TensorMap, codec: TensorMap) -> tuple[Json, TensorMap]:
    """Adds what Sesame's format lacks: transformers' config, and the codec, its own or kyutai/mimi."""
    mimi = HubRepository(MIMI, offline=source.offline)
    if "model_type" not in config_json:
        config_json = transformers_config(config_json, stored, read_json(require_file(mimi, "config.json")))
    own = source.find(CODEC_FILE)
    if own is not None:
        return config_json, read_weights(source, own)
    return config_json, codec or read_weights(mimi, require_file(mimi, "model.safetensors"))


def generation_defaults(source: Source) -> GenerationOptions:
    """The sampling options of a checkpoint's generation_config.json. The maximal duration is derived from the text.

    `do_sample: false` is temperature 0.

    Raises:
        CheckpointInvalid: an impossible value.
    """
    path = source.find("generation_config.json")
    config = read_json(path) if path else {}
    stages = (("", ""), ("depth_", "depth_decoder_"))
    names = {f"{ours}{name}": f"{theirs}{name}" for ours, theirs in stages for name in ("temperature", "top_k")}
    values = {ours: config[theirs] for ours, theirs in names.items() if config.get(theirs) is not None}
    for ours, theirs in stages:
        if config.get(f"{theirs}do_sample") is False:
            values[f"{ours}temperature"] = 0.0
    checked: dict[str, Any] = validate(values, lambda name: f"{path}: {names[name]}", CheckpointInvalid)
    return GenerationOptions(**checked).over(GenerationOptions(temperature=_TEMPERATURE, top_k=_TOP_K))


def _soft_limit(source: Source) -> int:
    path = source.find("generation_config.json")
    positions = read_json(path).get("csm_memory", 0) if path else 0
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 0:
        raise CheckpointInvalid(f"{path}: csm_memory must be a whole number >= 0, got {positions!r:.40}")
    return positions
