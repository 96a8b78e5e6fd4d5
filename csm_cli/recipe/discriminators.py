"""Discriminators for the codec's decoder: small convolutional networks on spectrograms. Never part of a checkpoint.

Source of the idea: multi-scale STFT discriminators (EnCodec, section 3.4), made small for a CPU: eight channels, and
frequencies are halved or more by the first layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SLOPE = 0.2


class SpectrogramDiscriminator(nn.Module):
    """Judges waveforms [B, N] by their complex spectrogram at one window of `fft` samples and a hop of a quarter."""

    window: Tensor

    def __init__(self, fft: int, channels: int = 8) -> None:
        super().__init__()
        self._fft = fft
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        shapes = [(2, channels, (1, 3)), (channels, channels, (1, 2)), (channels, 2 * channels, (2, 2))]
        shapes += [(2 * channels, 2 * channels, (1, 2))]
        self._layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (3, 9), stride, padding=(1, 4))) for before, after, stride in shapes
        )
        self._last = weight_norm(nn.Conv2d(2 * channels, 1, (3, 3), padding=1))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(scores [B, 1, T', F'], the layers' activations)."""
        spectrum = torch.stft(
            samples, self._fft, self._fft // 4, window=self.window, normalized=True, return_complex=True
        )
        hidden = torch.stack((spectrum.real, spectrum.imag), dim=1).transpose(2, 3)  # [B, 2, T, F]
        activations = []
        for layer in self._layers:
            hidden = F.leaky_relu(layer(hidden), _SLOPE)
            activations.append(hidden)
        return self._last(hidden), activations


class Discriminators(nn.Module):
    """Several spectrogram discriminators, and the losses of both sides.

    Least squares (LSGAN): smooth, and on a CPU's few steps less prone to a discriminator that says nothing.
    """

    def __init__(self, windows: Sequence[int] = (2048, 1024, 512, 256), channels: int = 8) -> None:
        super().__init__()
        self._members = nn.ModuleList(SpectrogramDiscriminator(fft, channels) for fft in windows)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Real waveforms [B, N] are to score 1, decoded ones (detached here) 0; a mean over the members."""
        losses = []
        for member in self._members:
            scores, _ = member(torch.cat((real, fake.detach())))
            real_scores, fake_scores = scores.chunk(2)
            losses.append((real_scores - 1).square().mean() + fake_scores.square().mean())
        return torch.stack(losses).mean()

    def generator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """(adversarial loss: decoded waveforms are to score 1; feature matching: L1 of activations over their size)."""
        adversarial, matching = [], []
        for member in self._members:
            with torch.no_grad():
                _, wanted = member(real)
            scores, found = member(fake)
            adversarial.append((scores - 1).square().mean())
            distances = [F.l1_loss(a, b) / b.abs().mean() for a, b in zip(found, wanted, strict=True)]
            matching.append(torch.stack(distances).mean())
        return torch.stack(adversarial).mean(), torch.stack(matching).mean()
