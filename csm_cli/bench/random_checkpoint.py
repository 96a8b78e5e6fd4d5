"""csm-1b's shapes with random weights: decoding speed does not depend on the weights, and nothing is downloaded."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.checkpoint.weights import BACKBONE_TABLE, DEPTH_TABLE, CheckpointWeights, StoredTensor, expected_shapes
from csm_cli.models.csm.config import model_config
from csm_cli.types import GenerationOptions

if TYPE_CHECKING:
    from transformers import CsmConfig

RANDOM_MODEL = "csm-1b-random"

_NO_FILE = Path(RANDOM_MODEL)
_BLOCK_SIZE = 1_000_003  # a prime, so that no two lines of a matrix are the same
_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0}
_BACKBONE_ROPE = {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
_DEPTH_ROPE = {"low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125, "original_max_position_embeddings": 16}


def open_for_bench(model: str | None) -> Checkpoint:
    """A checkpoint by name, or csm-1b's shapes for RANDOM_MODEL."""
    return random_checkpoint(csm_1b_config()) if model == RANDOM_MODEL else open_checkpoint(model)


def silence_logs() -> None:
    """Keeps transformers' warnings and progress bars off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def random_checkpoint(config: CsmConfig) -> Checkpoint:
    """A checkpoint without a tokenizer. Its weights are drawn, always the same, each time they are read."""
    from safetensors.torch import load_file
    from transformers import MimiModel

    config_json: dict[str, Any] = config.to_dict()
    sizes = model_config(config_json)
    shapes = expected_shapes(sizes)
    drawn = {name: StoredTensor(shape, partial(_draw, name, shape), _NO_FILE) for name, shape in shapes.items()}

    with TemporaryDirectory() as folder:  # Mimi as transformers initializes it, by its on-disk names
        MimiModel(config.codec_config).save_pretrained(folder)
        codec = load_file(Path(folder) / "model.safetensors")
    return Checkpoint(
        name=RANDOM_MODEL,
        config=sizes,
        codec_config=config_json["codec_config"],
        weights=CheckpointWeights(drawn | {DEPTH_TABLE: drawn[BACKBONE_TABLE]}),
        codec_weights=CheckpointWeights(
            {name: StoredTensor(tuple(each.shape), each.clone, _NO_FILE) for name, each in codec.items()}
        ),
        tokenizer_file=_NO_FILE,
        soft_limit=0,
        defaults=GenerationOptions(temperature=0.9, top_k=50),
        revision=None,
        config_json=config_json,
    )


def csm_1b_config() -> CsmConfig:
    """The sizes and RoPE of sesame/csm-1b's config.json."""
    from transformers import CsmConfig, CsmDepthDecoderConfig

    silence_logs()
    depth = CsmDepthDecoderConfig(rope_parameters=_ROPE | _DEPTH_ROPE)
    return CsmConfig(rope_parameters=_ROPE | _BACKBONE_ROPE, depth_decoder_config=depth)


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Ones for norms, else a repeated block of normal numbers: drawing all of them would take minutes."""
    if len(shape) < 2:
        return torch.ones(shape)
    size = math.prod(shape)
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    block = torch.empty(min(size, _BLOCK_SIZE)).normal_(std=0.02, generator=generator)
    return block.repeat(-(-size // len(block)))[:size].view(shape)
