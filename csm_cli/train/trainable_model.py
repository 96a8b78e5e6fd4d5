"""What is trained: transformers' CSM around a checkpoint's weights, whole or adapted, and how it is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import CsmConfig, CsmForConditionalGeneration

from csm_cli.checkpoint import Checkpoint, expected_shapes, open_checkpoint, processor_files
from csm_cli.checkpoint.export import write_checkpoint
from csm_cli.checkpoint.weights import CheckpointWeights, StoredTensor
from csm_cli.models.csm.config import model_config
from csm_cli.train.lora import LoraAdapter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from csm_cli.train.settings import ScratchSettings, TrainSettings


class TrainableModel:
    """A model under training and the checkpoint it comes from; its codec stays on disk.

    Raises as `open_checkpoint` and `LoraAdapter` do.
    """

    def __init__(self, settings: TrainSettings, offline: bool = False) -> None:
        base = open_checkpoint(settings.model, settings.revision, offline=offline)
        self.checkpoint = base if settings.scratch is None else _resized(base, settings.scratch)
        torch.manual_seed(settings.seed)
        self.model = _random(self.checkpoint) if settings.scratch else _loaded(self.checkpoint)
        self.model.codec_model = torch.nn.Identity()  # prepared codes are all that is seen
        self._adapter = LoraAdapter(self.model, settings.lora, base.name) if settings.lora else None
        self._processor_files = {} if settings.lora else processor_files(settings.model, settings.revision, offline)
        if settings.checkpointing:
            _checkpoint_activations(self.model)

    def save(self, folder: Path) -> None:
        """The adapter, or the whole checkpoint in transformers' format. Raises as `write_checkpoint`."""
        if self._adapter is not None:
            self._adapter.save(folder)
            return
        trained = replace(self.checkpoint, weights=_weights(self.model, self.checkpoint))
        write_checkpoint(trained, self._processor_files, folder)


def _checkpoint_activations(model: CsmForConditionalGeneration) -> None:
    """transformers' own, which 5.23 calls by another name than 5.21."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _loaded(checkpoint: Checkpoint) -> CsmForConditionalGeneration:
    weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    config = _config(checkpoint)
    return CsmForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)


def _random(checkpoint: Checkpoint) -> CsmForConditionalGeneration:
    return CsmForConditionalGeneration(_config(checkpoint)).float()


def _config(checkpoint: Checkpoint) -> CsmConfig:
    """transformers' own; which tables are tied is `tie_codebooks_embeddings` alone."""
    return CsmConfig.from_dict({**checkpoint.config_json, "tie_word_embeddings": False})


def _resized(base: Checkpoint, scratch: ScratchSettings) -> Checkpoint:
    """The checkpoint's config in other sizes; it keeps codec and tokenizer."""
    backbone: dict[str, Any] = {**base.config_json, **scratch.backbone}
    hidden = {"backbone_hidden_size": backbone["hidden_size"]}
    depth = {**base.config_json["depth_decoder_config"], **hidden, **scratch.depth}
    raw = {**backbone, "depth_decoder_config": depth}
    return replace(base, config_json=raw, config=model_config(raw), weights=CheckpointWeights({}))


def _weights(model: CsmForConditionalGeneration, checkpoint: Checkpoint) -> CheckpointWeights:
    state: dict[str, Tensor] = model.state_dict()

    def stored(name: str) -> StoredTensor:
        return StoredTensor(tuple(state[name].shape), partial(state.__getitem__, name), checkpoint.tokenizer_file)

    return CheckpointWeights({name: stored(name) for name in expected_shapes(checkpoint.config)})
