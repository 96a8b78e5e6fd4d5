"""LoRA adapters made with peft, and the codes that peft and csm generate with them."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers.parity import Prompt, reference
from helpers.tiny import decode_all, greedy
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CsmForConditionalGeneration

from csm_cli.checkpoint import Checkpoint
from csm_cli.engine import Engine, Request
from csm_cli.models.csm.model import CsmModel

FRAMES = 12
TARGETS = r"(?:.*\.)?(?:q_proj|down_proj|lm_head|inputs_embeds_projector)"


def make_adapter(base: Path, folder: Path, **options: object) -> Path:
    """A random adapter as peft writes it; its codec part is there and does nothing."""
    model = CsmForConditionalGeneration.from_pretrained(base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS, **options})
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "codec_model" not in name:
                parameter.normal_(std=0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


def by_csm(checkpoint: Checkpoint, given: Prompt) -> Tensor:
    """Greedy codes [T, K] of our engine."""
    model = CsmModel(checkpoint.config, checkpoint.weights, torch.device("cpu"), torch.float32)
    return decode_all(Engine(model), [Request(given.rows, greedy(FRAMES))])[0]


def by_transformers(model: CsmForConditionalGeneration, given: Prompt) -> Tensor:
    """Greedy codes [T, K] of transformers."""
    return reference(model, [given], FRAMES)[0]
