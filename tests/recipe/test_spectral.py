"""The reconstruction loss: what a decoder is asked for, and what it is not."""

from __future__ import annotations

import torch
from torch import Tensor

from csm_cli.recipe.spectral import RATE, mel_distance, mfcc, spectral_loss


def pulses(pitch: float, delay: float = 0.0, seconds: float = 1.0) -> Tensor:
    """A buzz of harmonics [1, N] at a pitch in Hz, its pulses `delay` periods late."""
    time = torch.arange(int(seconds * RATE)) / RATE
    harmonics = torch.arange(1, int(4000 / pitch))[:, None]
    return 0.02 * torch.cos(2 * torch.pi * harmonics * (pitch * time - delay)).sum(dim=0, keepdim=True)


def test_a_sound_is_no_distance_from_itself() -> None:
    buzz = pulses(100)
    assert spectral_loss(buzz, buzz) < 1e-5
    assert mel_distance(buzz, buzz) == 0


def test_where_the_pulses_lie_counts_far_less_than_that_there_are_pulses() -> None:
    buzz = pulses(100)
    torch.manual_seed(0)
    noise = torch.randn_like(buzz) * buzz.std()
    late, hiss = spectral_loss(pulses(100, delay=0.4), buzz), spectral_loss(noise, buzz)
    assert late < 0.2 * hiss


def test_another_pitch_is_heard() -> None:
    buzz = pulses(100)
    assert spectral_loss(pulses(112), buzz) > 3 * spectral_loss(pulses(100, delay=0.4), buzz)


def test_a_loud_moment_in_the_wrong_place_is_heard() -> None:
    click, late = torch.zeros(1, RATE), torch.zeros(1, RATE)
    click[:, 12_000:12_100], late[:, 13_000:13_100] = 0.5, 0.5
    assert spectral_loss(late, click) > 0.3


def test_mfccs_come_four_columns_a_frame() -> None:
    assert mfcc(torch.randn(2, 3 * 1920)).shape == (2, 52, 3)
