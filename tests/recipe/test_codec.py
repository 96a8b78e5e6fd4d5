"""Training of the codec: quantizer (code 0 of codebook 0 is never chosen) and reconstruction loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MimiModel

from csm_cli.recipe.codec import build_codec
from csm_cli.recipe.corpus import RATE
from csm_cli.recipe.quantizer import QuantizerTrainer
from csm_cli.recipe.spectral import mel_distance, spectral_loss

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


def test_frame_size(codec: MimiModel) -> None:
    assert codec.config.frame_size == 1920
    assert codec.encode(torch.zeros(1, 1, 1920 * 3)).audio_codes.shape == (1, 3, 3)


def test_code_zero_of_codebook_zero_is_never_chosen_and_silent(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(400, 16)
    quantizer.start(latents)
    codes = codec.quantizer.encode(latents.T[None] * 3)
    assert codes[0].min() >= 1
    zero = codec.quantizer.semantic_residual_vector_quantizer.decode(torch.zeros(1, 1, 1, dtype=torch.long))
    assert zero.abs().max() == 0


def train(quantizer: QuantizerTrainer, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step with all codebooks and every row rounded."""
    rows = len(latents)
    return quantizer(latents, torch.full((rows,), 2), torch.zeros(rows, dtype=torch.bool))


def test_training_quantizes_like_transformers(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(4, 16, 100)
    quantizer.start(latents.transpose(1, 2).flatten(0, 1))
    expected = codec.quantizer.decode(codec.quantizer.encode(latents).transpose(0, 1))
    found, _, _ = train(quantizer, latents)
    torch.testing.assert_close(found, expected)


def test_bypassed_rows_are_not_rounded_and_short_rows_lack_codebooks(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(3, 16, 100)
    quantizer.start(latents.transpose(1, 2).flatten(0, 1))
    codes = codec.quantizer.encode(latents).transpose(0, 1)
    expected = codec.quantizer.decode(codes[:, :2])[1]
    found, _, _ = quantizer(latents, torch.tensor([2, 1, 2]), torch.tensor([True, False, False]))
    torch.testing.assert_close(found[0], quantizer.bypass(latents)[0][0])
    torch.testing.assert_close(found[1], expected)


def test_codebooks_follow_the_data_and_gradients_pass(codec: MimiModel) -> None:
    quantizer = QuantizerTrainer(codec)
    latents = torch.randn(4, 16, 100)
    quantizer.start(latents.transpose(1, 2).flatten(0, 1))
    shifted = (latents + 2.0).requires_grad_()
    errors = []
    for _ in range(60):
        quantized, _, commit = train(quantizer, shifted)
        errors.append(float(commit.detach()))
    quantized.sum().backward()
    assert errors[-1] < errors[0] / 2
    assert shifted.grad is not None and shifted.grad.abs().sum() > 0


def pulses(pitch: float, delay: float = 0.0, seconds: float = 1.0) -> Tensor:
    """A buzz of harmonics [1, N] at a pitch in Hz, its pulses `delay` periods late."""
    time = torch.arange(int(seconds * RATE)) / RATE
    harmonics = torch.arange(1, int(4000 / pitch))[:, None]
    return 0.02 * torch.cos(2 * torch.pi * harmonics * (pitch * time - delay)).sum(dim=0, keepdim=True)


def test_loss_of_identical_audio_is_zero() -> None:
    buzz = pulses(100)
    assert spectral_loss(buzz, buzz) < 1e-5
    assert mel_distance(buzz, buzz) == 0


def test_phase_of_pulses_matters_far_less_than_their_presence() -> None:
    buzz = pulses(100)
    torch.manual_seed(0)
    noise = torch.randn_like(buzz) * buzz.std()
    late, hiss = spectral_loss(pulses(100, delay=0.4), buzz), spectral_loss(noise, buzz)
    assert late < 0.2 * hiss


def test_another_pitch_has_a_high_loss() -> None:
    buzz = pulses(100)
    assert spectral_loss(pulses(112), buzz) > 3 * spectral_loss(pulses(100, delay=0.4), buzz)


def test_displaced_click_has_a_high_loss() -> None:
    click, late = torch.zeros(1, RATE), torch.zeros(1, RATE)
    click[:, 12_000:12_100], late[:, 13_000:13_100] = 0.5, 0.5
    assert spectral_loss(late, click) > 0.3
