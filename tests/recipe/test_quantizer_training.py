"""The codec's quantizer: code 0 of codebook 0 is never chosen, and what is learned is what transformers decodes."""

from __future__ import annotations

import pytest
import torch
from transformers import MimiModel

from csm_cli.recipe.codec import build_codec
from csm_cli.recipe.quantizer import QuantizerTrainer

SHAPE = {
    "hidden_size": 16,
    "num_filters": 2,
    "num_residual_layers": 0,
    "upsampling_ratios": [8, 10, 12],
    "upsample_groups": 16,
    "num_quantizers": 3,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture
def codec() -> MimiModel:
    torch.manual_seed(0)
    return build_codec(SHAPE).eval()


def test_a_frame_is_1920_samples(codec: MimiModel) -> None:
    assert codec.config.frame_size == 1920
    assert codec.encode(torch.zeros(1, 1, 1920 * 3)).audio_codes.shape == (1, 3, 3)


def test_code_zero_of_codebook_zero_is_out_of_reach_and_silent(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(400, 16)
    quantizer.start(latents)
    codes = codec.quantizer.encode(latents.T[None] * 3)
    assert codes[0].min() >= 1
    zero = codec.quantizer.semantic_residual_vector_quantizer.decode(torch.zeros(1, 1, 1, dtype=torch.long))
    assert zero.abs().max() == 0


def test_training_quantizes_as_transformers_does(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(4, 16, 100)
    quantizer.start(latents.transpose(1, 2).flatten(0, 1))
    expected = codec.quantizer.decode(codec.quantizer.encode(latents).transpose(0, 1))
    found, _, _ = quantizer(latents, depth=2)
    torch.testing.assert_close(found, expected)


def test_codebooks_follow_the_data_and_gradients_pass(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(4, 16, 100)
    quantizer.start(latents.transpose(1, 2).flatten(0, 1))
    shifted = (latents + 2.0).requires_grad_()
    errors = []
    for _ in range(60):
        quantized, _, commit = quantizer(shifted, depth=2)
        errors.append(float(commit.detach()))
    quantized.sum().backward()
    assert errors[-1] < errors[0] / 2
    assert shifted.grad is not None and shifted.grad.abs().sum() > 0
