"""Write a checkpoint's folder in transformers' format or Sesame's original one; it appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.sesame import CODEC_FILE, original_config, original_tensors
from csm_cli.errors import OutputFailed, OutputRefused

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from csm_cli.checkpoint.open import Checkpoint

FORMATS = ("transformers", "original")
_MARKS = ("config.json", "adapter_config.json")
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
    with staging_folder(folder) as fresh:
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
def staging_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place when all went well.

    Raises:
        OutputRefused: `folder` is a file, or holds something that is no checkpoint.
        OutputFailed: what was written in it did not fit, or could not be put in place.
    """
    from safetensors import SafetensorError

    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).exists() for mark in _MARKS):
        raise OutputRefused(f"{folder} holds other files; name a new folder, or one with a checkpoint to replace")
    fresh, old = _beside(folder)
    try:
        recover_interrupted(folder)
        fresh.mkdir(parents=True)
        yield fresh
        _flush(fresh)
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(fresh, ignore_errors=True)
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise OutputFailed(f"{folder} could not be written: {reason}; make room and run again") from problem
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def recover_interrupted(folder: Path) -> None:
    """Undoes what a kill has left of writing `folder`: what was there is back, and nothing half-made beside it."""
    fresh, old = _beside(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as transformers reads it; a tensor given twice is written twice."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, Any] = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        separate[name] = kept.clone() if kept.data_ptr() in seen else kept
        seen.add(kept.data_ptr())
    save_file(separate, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is made, and where the one it replaces waits meanwhile."""
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def _flush(folder: Path) -> None:
    """Its files are on the disk when this returns."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


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
