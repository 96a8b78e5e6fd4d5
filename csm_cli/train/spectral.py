"""Spectral losses and features in torch: log-mel distance at four resolutions, MFCCs for the phonetic probe."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

RATE = 24_000
_RESOLUTIONS = ((256, 32), (512, 48), (1024, 80), (2048, 80))
_FLOOR, _MFCC_FLOOR = 3e-4, 1e-4
_MFCC_FFT, _MFCC_HOP, _MFCC_BANDS, _MFCC = 1024, 480, 40, 13


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence plus log10-mel L1 of waveforms [B, N], averaged over the resolutions."""
    terms = []
    for fft, bands in _RESOLUTIONS:
        mine, theirs = _magnitude(output, fft, fft // 4), _magnitude(target, fft, fft // 4)
        convergence = (mine - theirs).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2)).clamp(min=0.01)
        terms.append(convergence.mean() + 2.0 * mel_distance_of(mine, theirs, fft, bands))
    return torch.stack(terms).mean()


def mel_distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute log10-mel difference of waveforms [B, N] at 1024 points: the figure the codec is watched by."""
    return mel_distance_of(_magnitude(output, 1024, 256), _magnitude(target, 1024, 256), 1024, 80)


def mel_distance_of(mine: Tensor, theirs: Tensor, fft: int, bands: int) -> Tensor:
    """The same of magnitudes [B, F, T]."""
    return F.l1_loss(_log_mel(mine, fft, bands, _FLOOR), _log_mel(theirs, fft, bands, _FLOOR))


def mfcc(samples: Tensor) -> Tensor:
    """MFCCs of waveforms [B, N], four columns for each 1920-sample frame: [B, 52, N / 1920]."""
    columns = _log_mel(_magnitude(samples, _MFCC_FFT, _MFCC_HOP), _MFCC_FFT, _MFCC_BANDS, _MFCC_FLOOR)[..., :-1]
    cepstra = _dct(_MFCC, _MFCC_BANDS).to(samples) @ columns  # [B, 13, 4T]
    batch, _, length = cepstra.shape
    return cepstra.view(batch, _MFCC, length // 4, 4).transpose(2, 3).reshape(batch, 4 * _MFCC, length // 4)


def _magnitude(samples: Tensor, fft: int, hop: int) -> Tensor:
    """Magnitudes [B, F, T]; a sine of amplitude 1 peaks at 1."""
    window = _window(fft).to(samples.device)
    spectrum = torch.stft(samples, fft, hop, window=window, return_complex=True, pad_mode="constant")
    power = spectrum.real.square() + spectrum.imag.square()
    magnitude: Tensor = (power + 1e-10).sqrt()
    return magnitude * (2 / fft)


def _log_mel(magnitude: Tensor, fft: int, bands: int, floor: float) -> Tensor:
    mel = _filters(fft, bands).to(magnitude.device) @ magnitude
    logarithms: Tensor = mel.clamp(min=floor).log10()
    return logarithms


@cache
def _window(fft: int) -> Tensor:
    return torch.hann_window(fft)


@cache
def _filters(fft: int, bands: int) -> Tensor:
    import librosa

    return torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=fft, n_mels=bands, norm=None)).float()


@cache
def _dct(count: int, bands: int) -> Tensor:
    """Orthonormal DCT-II rows [count, bands]."""
    angle = torch.pi / bands * (torch.arange(bands) + 0.5) * torch.arange(count)[:, None]
    rows: Tensor = torch.cos(angle) * (2.0 / bands) ** 0.5
    rows[0] *= 0.5**0.5
    return rows
