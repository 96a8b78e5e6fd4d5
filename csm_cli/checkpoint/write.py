"""Write a checkpoint's folder in transformers' format or Sesame's original one; it appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.sesame import CODEC_FILE, original_config, original_tensors
from csm_cli.errors import OutputFailed, OutputRefused
from csm_cli.storage.files import replace_folder

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from csm_cli.checkpoint.open import Checkpoint

FORMATS = ("transformers", "original")
_CONFIG_FILES = ("config.json", "adapter_config.json")
_ELSEWHERE = ("transformers_weights", "transformers_version", "torch_dtype", "_name_or_path")


def write_checkpoint(
    checkpoint: Checkpoint,
    companions: Mapping[str, Path],
    folder: Path,
    form: str = "transformers",
    dtype: torch.dtype | None = None,
) -> None:
    """Writes weights, config.json and `companions`, the files transformers' processor reads, by name.

    form: one of FORMATS. dtype: of the model's weights; as they are where None.

    transformers' format holds the audio table under both its names and `tie_word_embeddings: false`, which every
    release since 5.0 loads, with one table or two.

    Raises:
        CheckpointInvalid: the original format cannot hold this model.
        OutputRefused: `folder` holds something that is no checkpoint.
        OutputFailed: it could not be written to the end.
    """
    weights = dict(checkpoint.weights) if dtype is None else {n: t.to(dtype) for n, t in checkpoint.weights.items()}
    config = {name: value for name, value in checkpoint.raw.items() if name not in _ELSEWHERE}
    config.update(architectures=["CsmForConditionalGeneration"], tie_word_embeddings=False)
    config["dtype"] = _declared(checkpoint, weights, dtype)
    with replace_checkpoint(folder) as fresh:
        for name, path in companions.items():
            shutil.copyfile(path, fresh / name)
        if form == "original":
            save_tensors(dict(original_tensors(weights, checkpoint.config)), fresh / "model.safetensors")
            write_json(fresh / "config.json", original_config(checkpoint.config, config))
            save_tensors(checkpoint.codec_weights, fresh / CODEC_FILE)
        else:
            codec = {f"codec_model.{name}": tensor for name, tensor in checkpoint.codec_weights.items()}
            save_tensors(weights | codec, fresh / "model.safetensors")
            write_json(fresh / "config.json", _without_flavors(config))


@contextmanager
def replace_checkpoint(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder`, as `replace_folder`; other files are never replaced.

    Raises:
        OutputRefused: `folder` is a file, or holds something that is no checkpoint.
        OutputFailed: as `replace_folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in _CONFIG_FILES):
        raise OutputRefused(f"{folder} holds other files; name a new folder, or one with a checkpoint to replace")
    with replace_folder(folder) as fresh:
        yield fresh


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as transformers reads it; a tensor that occurs twice is written twice.

    Raises:
        OutputFailed, OSError: the disk is full or failed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, Any] = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        separate[name] = kept.clone() if kept.data_ptr() in seen else kept
        seen.add(kept.data_ptr())
    try:
        save_file(separate, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputFailed(f"{path}: could not be written ({error}); make room and run again") from error
    path.chmod(0o644)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _declared(checkpoint: Checkpoint, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """The dtype that config.json asks for: what was asked, float32 where a tensor has it, else what was declared."""
    import torch

    found = {tensor.dtype for tensor in weights.values()} if dtype is None else {dtype}
    known = checkpoint.raw.get("dtype") or checkpoint.raw.get("torch_dtype")
    chosen = torch.float32 if torch.float32 in found else next(iter(found))
    return known if dtype is None and known and torch.float32 not in found else str(chosen).removeprefix("torch.")


def _without_flavors(config: Mapping[str, Any]) -> dict[str, Any]:
    sesames = ("_flavor", "backbone_head_dim", "decoder_head_dim", "audio_vocab_size", "audio_num_codebooks")
    return {name: value for name, value in config.items() if not name.endswith(sesames)}
