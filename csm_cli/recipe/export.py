"""Write a voice as a checkpoint folder that transformers' `from_pretrained` reads as it lies.

Weights are float16 with `dtype: float32` in the config; `tie_word_embeddings` is written false, which every
transformers from 5.20 accepts.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.recipe.model import CODES
from csm_cli.recipe.tokenizer import save_processor
from csm_cli.storage.files import replace_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import CsmConfig, CsmForConditionalGeneration

    from csm_cli.recipe.plan import SamplingPlan

_TIED = "depth_decoder.model.embed_tokens.weight"
_KEPT = "backbone_model.embed_tokens.embed_audio_tokens.weight"


def export_voice(model: CsmForConditionalGeneration, sampling: SamplingPlan, folder: Path) -> None:
    """Write the checkpoint beside `folder` and put it in its place at once; other files in `folder` are kept."""
    with replace_folder(folder) as fresh:
        if folder.exists():
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
        model.save_pretrained(fresh, state_dict=stored_weights(model))  # names on disk differ from those in memory
        (fresh / "model.safetensors").chmod(0o644)
        _write_json(fresh / "config.json", stored_config(model))
        _write_json(fresh / "generation_config.json", generation_config(sampling, model.config))
        save_processor(fresh)


def stored_weights(model: CsmForConditionalGeneration) -> dict[str, Tensor]:
    """float16 weights under transformers' names; the tied audio embedding is stored once."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
    assert _KEPT in state
    half = {name: _stored(tensor) for name, tensor in state.items()}
    broken = [name for name, tensor in half.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ValueError(f"weights that float16 cannot hold: {', '.join(broken)}")
    return half


def stored_config(model: CsmForConditionalGeneration) -> dict[str, Any]:
    """The model's config as stored, without transformers' private keys."""
    config: dict[str, Any] = _public(model.config.to_dict())
    config.update(architectures=["CsmForConditionalGeneration"], dtype="float32", tie_word_embeddings=False)
    return config


def generation_config(sampling: SamplingPlan, config: CsmConfig) -> dict[str, Any]:
    """Default sampling for the backbone and the depth decoder; the special codes are never sampled."""
    special = list(range(CODES, config.vocab_size))
    common = {"do_sample": True, "suppress_tokens": special}
    depth = {
        **common,
        "temperature": sampling.depth_temperature,
        "top_k": sampling.depth_top_k,
        "max_new_tokens": config.num_codebooks - 1,
        "min_new_tokens": config.num_codebooks - 1,
    }
    return {
        **common,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_frames,
        **{f"depth_decoder_{name}": value for name, value in depth.items()},
        **({"csm_memory": sampling.memory} if sampling.memory else {}),
    }


def _stored(tensor: Tensor) -> Tensor:
    kept = tensor.detach().cpu().contiguous()
    return kept.half() if kept.is_floating_point() else kept


def _public(config: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _public(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in nested.items() if not str(name).startswith("_")}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
