"""Spectral losses and features in torch: what a reconstruction should sound like, MFCCs for the phonetic probe."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

RATE = 24_000
_FFTS, _BANDS = (1024, 2048, 4096), 80
_HARMONICS_BELOW = 5000.0  # Hz
_SHORT_FFT, _SHORT_BANDS = 256, 32
_FLOOR, _MFCC_FLOOR = 3e-4, 1e-4
_MFCC_FFT, _MFCC_HOP, _MFCC_BANDS, _MFCC = 1024, 480, 40, 13


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """How unlike two waveforms [B, N] sound: spectral convergence, log10 magnitudes and log10-mels over windows that
    hold several periods of the lowest voice, and the short-time envelope.

    A window shorter than that sees where in time each pulse of a voice lies. Codes do not say that, and a decoder that
    cannot know it does best with no pulses at all: no pitch. So short windows count by their mean over 16 ms.
    """
    terms = [_short_time_distance(output, target)]
    for fft in _FFTS:
        mine, theirs = _magnitude(output, fft, fft // 4), _magnitude(target, fft, fft // 4)
        convergence = (mine - theirs).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2)).clamp(min=0.01)
        terms.append(convergence.mean())
        if fft < _FFTS[-1]:
            terms.append(2.0 * mel_distance_of(mine, theirs, fft, _BANDS))
        if fft > _FFTS[0]:
            terms.append(_harmonic_distance(mine, theirs))
    return torch.stack(terms).sum() / 4


def _harmonic_distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """L1 of log10 magnitudes [B, F, T] where harmonics are."""
    bins = int((mine.shape[1] - 1) * 2 * _HARMONICS_BELOW / RATE)
    return F.l1_loss(mine[:, :bins].clamp(min=_FLOOR).log10(), theirs[:, :bins].clamp(min=_FLOOR).log10())


def _short_time_distance(output: Tensor, target: Tensor) -> Tensor:
    """L1 of log10-mels of 11 ms windows, their power averaged over 16 ms."""
    mine, theirs = (_averaged(_magnitude(each, _SHORT_FFT, _SHORT_FFT // 4)) for each in (output, target))
    return 2.0 * mel_distance_of(mine, theirs, _SHORT_FFT, _SHORT_BANDS)


def _averaged(magnitude: Tensor) -> Tensor:
    return F.avg_pool1d(magnitude.square(), 6, 3).clamp(min=1e-10).sqrt()


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
