"""Write a checkpoint as a folder in transformers' format or in Sesame's original one, atomically."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from csm_cli.checkpoint.load import Checkpoint
from csm_cli.checkpoint.sesame import CODEC_FILE, sesame_config, sesame_tensors
from csm_cli.errors import OutputFailed
from csm_cli.storage.folders import replace_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SESAME_KEYS = ("_flavor", "backbone_head_dim", "decoder_head_dim", "audio_vocab_size", "audio_num_codebooks")
_DROPPED_KEYS = ("transformers_weights", "transformers_version", "torch_dtype", "_name_or_path")


def write_checkpoint(
    checkpoint: Checkpoint,
    processor: Mapping[str, Path],
    folder: Path,
    to: Literal["transformers", "original"] = "transformers",
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> None:
    """Writes weights, config.json and the files of `processor`, by name (see `processor_files`).

    to: the format. dtype: of the model's weights; None leaves them as they are. force: replaces any folder.

    transformers' format holds the audio table under both its names and `tie_word_embeddings: false`, which every
    release since 5.0 loads, with one table or two.

    Raises:
        CheckpointInvalid: the original format cannot hold this model.
        OutputRefused: `folder` holds files that csm did not write there.
        OutputFailed: it could not be written to the end.
    """
    weights = dict(checkpoint.weights) if dtype is None else {n: t.to(dtype) for n, t in checkpoint.weights.items()}
    config = {name: value for name, value in checkpoint.config_json.items() if name not in _DROPPED_KEYS}
    config.update(architectures=["CsmForConditionalGeneration"], tie_word_embeddings=False)
    config["dtype"] = _config_dtype(checkpoint, weights, dtype)
    with replace_checkpoint(folder, force) as fresh:
        for name, path in processor.items():
            shutil.copyfile(path, fresh / name)
        if to == "original":
            save_tensors(dict(sesame_tensors(weights, checkpoint.config)), fresh / "model.safetensors")
            config = sesame_config(checkpoint.config, config)
            save_tensors(checkpoint.codec_weights, fresh / CODEC_FILE)
        else:
            codec = {f"codec_model.{name}": tensor for name, tensor in checkpoint.codec_weights.items()}
            save_tensors(weights | codec, fresh / "model.safetensors")
            config = {name: value for name, value in config.items() if not name.endswith(_SESAME_KEYS)}
        (fresh / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def replace_checkpoint(folder: Path, force: bool = False) -> AbstractContextManager[Path]:
    """A new folder for a checkpoint or an adapter; see `replace_folder`."""
    return replace_folder(folder, "checkpoint", force)


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
        tensor = tensor.detach().cpu().contiguous()
        separate[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    path.touch()  # with the permissions of the umask, which save_file does not heed
    mode = path.stat().st_mode
    try:
        save_file(separate, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputFailed(f"{path}: could not be written ({error}); make room and run again") from error
    path.chmod(stat.S_IMODE(mode))


def _config_dtype(checkpoint: Checkpoint, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """The dtype in config.json: `dtype` if given; float32 if any tensor has it; else what config.json had."""
    import torch

    dtypes = {tensor.dtype for tensor in weights.values()} if dtype is None else {dtype}
    if torch.float32 in dtypes:
        return "float32"
    before = checkpoint.config_json.get("dtype") or checkpoint.config_json.get("torch_dtype")
    return before if dtype is None and before else str(next(iter(dtypes))).removeprefix("torch.")
