"""Open a checkpoint: follow its config to its weights, check every tensor, and say what is wrong in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from csm_cli.checkpoint.adapter import merge_adapter
from csm_cli.checkpoint.find import MIMI, MIRROR, HubRepository, Source, locate, require_file
from csm_cli.checkpoint.sesame import CODEC_FILE, convert_sesame, is_original, transformers_config
from csm_cli.checkpoint.tensor_shapes import check_shapes
from csm_cli.checkpoint.weights import CheckpointWeights, TensorMap, read_json, read_weights
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.csm.config import ModelConfig, model_config
from csm_cli.storage.fingerprint import Fingerprint
from csm_cli.types import GenerationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from csm_cli.models.csm.config import Json

_CODEC = "codec_model."
_WEIGHT_FILES = (
    "transformers.safetensors.index.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "ckpt.pt",
)
_COMPANIONS = (
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors have been checked by name and shape, and are read when asked for.

    weights: by transformers' on-disk names; the audio table under both its names. codec_weights: the codec's, without
    the `codec_model.` prefix, not checked here. defaults: the generation options it was published with.
    revision: the commit on Hugging Face, None for a local checkpoint. memory: positions of its window in which it
    speaks well (`csm_memory` in generation_config.json); 0 for all. raw: config.json as transformers reads it.
    """

    name: str
    config: ModelConfig
    codec_config: Json
    weights: CheckpointWeights
    codec_weights: CheckpointWeights
    tokenizer_file: Path
    defaults: GenerationOptions
    revision: str | None
    memory: int = 0
    raw: Json = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """64 digits that are equal where the checkpoint is, in any folder: its configs, and samples of its files."""
        digest = Fingerprint(repr((self.config, self.memory)), self.codec_config)
        files = {*self.weights.files, *self.codec_weights.files, self.tokenizer_file}
        for path in sorted(files, key=lambda path: path.name):
            size = path.stat().st_size
            digest.add(size.to_bytes(8, "big"))
            with path.open("rb") as file:
                for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                    file.seek(offset)
                    digest.add(file.read(_SAMPLE_BYTES))
        return digest.hex(64)


@dataclass(frozen=True)
class CheckpointOutline:
    """What is known of a checkpoint without its weights; memory: as in `Checkpoint`."""

    name: str
    config: ModelConfig
    tokenizer_file: Path
    memory: int


def read_outline(model: str | None = None, revision: str | None = None, offline: bool = False) -> CheckpointOutline:
    """A checkpoint's sizes and tokenizer; its weights are neither fetched nor read where its config is whole.

    Raises:
        ModelError, UsageError: as `open_checkpoint`.
    """
    source = locate(model, revision, offline)
    config = _read_config(source)
    if "model_type" in config:
        return CheckpointOutline(
            source.name, _sizes(source, config), _tokenizer_file(source, foreign=False), _memory(source)
        )
    whole = open_checkpoint(model, revision, offline=offline)
    return CheckpointOutline(whole.name, whole.config, whole.tokenizer_file, whole.memory)


def open_checkpoint(
    model: str | None = None, revision: str | None = None, adapter: str | None = None, *, offline: bool = False
) -> Checkpoint:
    """Opens the bundled voice (None), a directory or weights file, or a Hugging Face id; `offline` if it is cached.

    adapter: a directory or Hugging Face id of a LoRA adapter, merged into the weights as they are read.

    Raises:
        ModelNotFound, ModelGated, ModelOffline: the checkpoint cannot be had.
        CheckpointInvalid: its files do not make a CSM.
        UsageError: a revision for a local checkpoint.
    """
    source = locate(model, revision, offline)
    config = _read_config(source)
    file = _weights_file(source, config)
    stored, codec = _split(read_weights(source, file))
    if foreign := is_original(stored):
        config, codec = _with_mimi(source, config, stored, codec)
    elif not config:
        raise source.absent("config.json")
    sizes = _sizes(source, config)
    tensors = (convert_sesame if foreign else check_shapes)(stored, sizes, str(file))
    return Checkpoint(
        name=source.name if adapter is None else f"{source.name} with {adapter}",
        config=sizes,
        codec_config=config["codec_config"],
        weights=CheckpointWeights(tensors if adapter is None else merge_adapter(tensors, adapter, sizes.tied, offline)),
        codec_weights=CheckpointWeights(codec),
        tokenizer_file=_tokenizer_file(source, foreign),
        defaults=published_defaults(source),
        revision=source.revision,
        memory=_memory(source),
        raw=config,
    )


def companion_files(model: str | None = None, revision: str | None = None, offline: bool = False) -> dict[str, Path]:
    """The files beside a checkpoint's weights that transformers' processor and `generate` read, by name.

    Where a checkpoint in Sesame's format has none, they are csm-1b's. Raises as `open_checkpoint`.
    """
    source = locate(model, revision, offline)
    found = {name: path for name in _COMPANIONS if (path := source.find(name))}
    if "tokenizer.json" in found or isinstance(source, HubRepository):
        return found
    mirror = HubRepository(MIRROR, offline=offline)
    return {name: path for name in _COMPANIONS if (path := mirror.find(name))}


def _read_config(source: Source) -> Json:
    """config.json, refused before any weights are fetched where it is no CSM's; empty where there is none."""
    path = source.find("config.json")
    if path is None:
        if adapter := source.find("adapter_config.json"):
            base = read_json(adapter).get("base_model_name_or_path", "its base model")
            raise CheckpointInvalid(f"{source.name} is an adapter for {base}, not a model; name it with --adapter")
        return {}
    config = read_json(path)
    if "backbone_flavor" not in config:
        _sizes(source, config)
    return config


def _sizes(source: Source, config: Json) -> ModelConfig:
    try:
        return model_config(config)
    except CheckpointInvalid as problem:
        raise CheckpointInvalid(f"{source.name}: {problem}") from problem
    except (TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise CheckpointInvalid(f"{source.name}: config.json does not describe a CSM ({problem})") from problem


def _weights_file(source: Source, config: Json) -> Path:
    """The weights file somebody named, else the one the config names, else the first usual one."""
    if source.weights:
        return require_file(source, source.weights)
    named = config.get("transformers_weights")
    if isinstance(named, str):
        return require_file(source, named)
    found = next((path for name in _WEIGHT_FILES if (path := source.find(name))), None)
    if found is None:
        raise source.absent("model.safetensors" if config else "config.json")
    return found


def _split(stored: TensorMap) -> tuple[TensorMap, TensorMap]:
    """The model's tensors and the codec's, these without their prefix."""
    model = {name: tensor for name, tensor in stored.items() if not name.startswith(_CODEC)}
    codec = {name.removeprefix(_CODEC): tensor for name, tensor in stored.items() if name.startswith(_CODEC)}
    return model, codec


def _with_mimi(source: Source, config: Json, stored: TensorMap, codec: TensorMap) -> tuple[Json, TensorMap]:
    """Adds what the original format leaves out: transformers' config, and the codec beside it or the published one."""
    mimi = HubRepository(MIMI, offline=source.offline)
    if "model_type" not in config:
        config = transformers_config(config, stored, read_json(require_file(mimi, "config.json")))
    own = source.find(CODEC_FILE)
    if own is not None:
        return config, read_weights(source, own)
    return config, codec or read_weights(mimi, require_file(mimi, "model.safetensors"))


def _tokenizer_file(source: Source, foreign: bool) -> Path:
    own = source.find("tokenizer.json")
    return own or require_file(HubRepository(MIRROR, offline=source.offline) if foreign else source, "tokenizer.json")


def published_defaults(source: Source) -> GenerationOptions:
    """What a checkpoint was published with, by its generation_config.json.

    Its length is not among that, since it is derived from the text.
    """
    path = source.find("generation_config.json")
    config = read_json(path) if path else {}
    try:
        temperature, top_k = _sampling(config, "")
        depth_temperature, depth_top_k = _sampling(config, "depth_decoder_")
    except (TypeError, ValueError, OverflowError) as problem:
        raise CheckpointInvalid(f"{path}: temperature and top_k must be numbers >= 0 ({problem})") from problem
    temperature = _TEMPERATURE if temperature is None else temperature
    top_k = _TOP_K if top_k is None else top_k
    return GenerationOptions(
        temperature=temperature,
        top_k=top_k,
        # unset where equal, so that the depth decoder follows when somebody changes the backbone's
        depth_temperature=None if depth_temperature == temperature else depth_temperature,
        depth_top_k=None if depth_top_k == top_k else depth_top_k,
    )


def _memory(source: Source) -> int:
    path = source.find("generation_config.json")
    positions = read_json(path).get("csm_memory", 0) if path else 0
    if not isinstance(positions, int) or positions < 0:
        raise CheckpointInvalid(f"{path}: csm_memory must be a whole number >= 0, got {positions!r}")
    return positions


def _sampling(config: Json, prefix: str) -> tuple[float | None, int | None]:
    """Temperature and top-k of one stage; not sampling is temperature 0.

    Raises:
        TypeError, ValueError, OverflowError: they are no finite numbers >= 0.
    """
    temperature, top_k = config.get(f"{prefix}temperature"), config.get(f"{prefix}top_k")
    if config.get(f"{prefix}do_sample") is False:
        temperature = 0.0
    read = None if temperature is None else float(temperature), None if top_k is None else int(top_k)
    wrong = next((value for value in read if value is not None and not 0 <= value < math.inf), None)
    if wrong is not None:
        raise ValueError(f"got {wrong:g}")
    return read
