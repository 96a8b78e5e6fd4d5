"""Stage "codec": trains Mimi's architecture from random weights on crops of the corpus, in float32."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import MimiConfig, MimiModel

from csm_cli.recipe.corpus import FRAME, RATE, VOICES, load_shard, shard_stems
from csm_cli.train.history import append_figures, plot_history, save_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from csm_cli.recipe.plan import CodecPlan

_LOG = logging.getLogger(__name__)
_SAVE_SECONDS = 120.0
_LOG_EVERY = 20
_PROBE_WEIGHT, _COMMIT_WEIGHT = 0.5, 0.1
_DECAY = 0.99
_DEAD = 0.03
_FAR = 1000.0
_FFTS, _BANDS = (1024, 2048, 4096), 80
_HARMONICS_BELOW = 5000.0  # Hz
_SHORT_FFT, _SHORT_BANDS = 256, 32
_FLOOR, _MFCC_FLOOR = 3e-4, 1e-4
_MFCC_FFT, _MFCC_HOP, _MFCC_BANDS, _MFCC = 1024, 480, 40, 13


def log_figures(folder: Path, step: int, split: str, figures: Mapping[str, float]) -> None:
    """Appends figures to `folder/history.jsonl` and logs them."""
    _LOG.info(
        "%s %d %s: %s", folder.name, step, split, " ".join(f"{key} {value:.3f}" for key, value in figures.items())
    )
    append_figures(folder, step, split, figures)


def mean_figures(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def reserve_code_zero(model: MimiModel) -> None:
    """Takes dimension 0 of the semantic space out of use, in both projections."""
    semantic = model.quantizer.semantic_residual_vector_quantizer
    with torch.no_grad():
        semantic.input_proj.weight[0] = 0.0
        semantic.output_proj.weight[:, 0] = 0.0


class QuantizerTrainer:
    """Trains Mimi's split residual quantizer: moving averages, k-means initialization, revival of unused codes.

    Mimi's modules only look codes up; here their buffers (`embed_sum`, `cluster_usage`) are updated, and gradients pass
    straight through. Code 0 of codebook 0 is never chosen, so that a zero there can mean the end of speech: dimension 0
    of the semantic space holds nothing but that code's distance.
    """

    def __init__(self, model: MimiModel) -> None:
        quantizer = model.quantizer
        self.semantic = quantizer.semantic_residual_vector_quantizer
        self.acoustic = quantizer.acoustic_residual_vector_quantizer

    def bypass(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(latents without quantization [B, C, T], semantic vectors [B, D, T])."""
        semantic = self.semantic.input_proj(latents)
        acoustic = self.acoustic.input_proj(latents)
        return self.semantic.output_proj(semantic) + self.acoustic.output_proj(acoustic), semantic

    def __call__(self, latents: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes with the semantic and the first `depth` acoustic codebooks, and updates all.

        Returns (latents [B, C, T], semantic vectors [B, D, T], commitment loss).
        """
        semantic, semantic_commit = _chain(self.semantic, self.semantic.input_proj(latents), 1, first_code=1)
        acoustic, acoustic_commit = _chain(self.acoustic, self.acoustic.input_proj(latents), depth, first_code=0)
        return (
            self.semantic.output_proj(semantic) + self.acoustic.output_proj(acoustic),
            semantic,
            semantic_commit + acoustic_commit,
        )

    @torch.no_grad()
    def start(self, latents: Tensor, iterations: int = 12) -> None:
        """Initializes every codebook by k-means on latents [N, C], chain after chain."""
        for chain, first in ((self.semantic, 1), (self.acoustic, 0)):
            residual = F.linear(latents, chain.input_proj.weight[..., 0])
            for layer in chain.layers:
                book = layer.codebook
                centers = _kmeans(residual, book.embed_sum.shape[0] - first, iterations)
                book.embed_sum[first:] = centers
                book.cluster_usage.fill_(1.0)
                residual = residual - centers[torch.cdist(residual, centers).argmin(dim=-1)]
        self.seal()

    @torch.no_grad()
    def seal(self) -> None:
        """Brings the codebooks to a checkpoint's form: plain centers with usage 1, code 0 of codebook 0 far away."""
        for chain in (self.semantic, self.acoustic):
            for layer in chain.layers:
                book = layer.codebook
                book.embed_sum.copy_(_embed(book))
                book.cluster_usage.fill_(1.0)
                book._embed = None
        zero = self.semantic.layers[0].codebook.embed_sum[0]
        zero.zero_()
        zero[0] = _FAR


def _chain(chain: Any, inputs: Tensor, depth: int, first_code: int) -> tuple[Tensor, Tensor]:
    """Residual quantization of [B, D, T]: (straight-through vectors [B, D, T], commitment loss)."""
    vectors = inputs.transpose(1, 2)
    residual = vectors.detach().flatten(0, 1)
    total = torch.zeros_like(residual)
    used = total
    for index, layer in enumerate(chain.layers):
        embed = _embed(layer.codebook)[first_code:]
        codes = torch.cdist(residual, embed).argmin(dim=-1)
        _update(layer.codebook, residual, codes, first_code)
        residual = residual - embed[codes]
        total = total + embed[codes]
        if index < depth:
            used = total
    used = used.view_as(vectors)
    straight = vectors + (used - vectors).detach()
    return straight.transpose(1, 2), F.mse_loss(vectors, total.view_as(vectors))


def _embed(book: Any) -> Tensor:
    centers: Tensor = book.embed_sum / book.cluster_usage.clamp(min=book.epsilon)[:, None]
    return centers


@torch.no_grad()
def _update(book: Any, vectors: Tensor, codes: Tensor, first: int) -> None:
    """One step of the moving averages from vectors [N, D]; a code unused for long is set to a random vector."""
    usage, sums = book.cluster_usage[first:], book.embed_sum[first:]
    counts = torch.zeros_like(usage).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
    usage.mul_(_DECAY).add_(counts, alpha=1 - _DECAY)
    sums.mul_(_DECAY).add_(torch.zeros_like(sums).index_add_(0, codes, vectors), alpha=1 - _DECAY)
    dead = usage < _DEAD * len(vectors) / len(usage)
    if dead.any():
        picks = vectors[torch.randint(len(vectors), (int(dead.sum()),), device=vectors.device)]
        fresh = len(vectors) / len(usage)
        usage[dead] = fresh
        sums[dead] = picks * fresh


def _kmeans(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Lloyd's algorithm on [N, D], empty clusters refilled at random: centers [count, D]."""
    picks = torch.randperm(len(vectors), device=vectors.device)[:count]
    centers = vectors[picks].clone()
    for _ in range(iterations):
        codes = torch.cdist(vectors, centers).argmin(dim=-1)
        counts = torch.bincount(codes, minlength=count)
        sums = torch.zeros_like(centers).index_add_(0, codes, vectors)
        empty = counts == 0
        centers = sums / counts.clamp(min=1)[:, None]
        centers[empty] = vectors[torch.randint(len(vectors), (int(empty.sum()),), device=vectors.device)]
    return centers


def spectral_loss(output: Tensor, target: Tensor) -> Tensor:
    """Distance of two waveforms [B, N]: spectral convergence, log10 magnitudes and log10-mels over windows of several
    periods of the lowest voice, and the short-time envelope.

    A shorter window would resolve the position of each glottal pulse, which the codes do not hold; the decoder would
    then minimize the loss with no pulses, that is without pitch. So short windows are averaged over 16 ms.
    """
    terms = [_short_time_distance(output, target)]
    for fft in _FFTS:
        estimate, reference = _magnitude(output, fft, fft // 4), _magnitude(target, fft, fft // 4)
        convergence = (estimate - reference).norm(dim=(1, 2)) / reference.norm(dim=(1, 2)).clamp(min=0.01)
        terms.append(convergence.mean())
        if fft < _FFTS[-1]:
            terms.append(2.0 * mel_distance_of(estimate, reference, fft, _BANDS))
        if fft > _FFTS[0]:
            terms.append(_harmonic_distance(estimate, reference))
    return torch.stack(terms).sum() / 4


def _harmonic_distance(estimate: Tensor, reference: Tensor) -> Tensor:
    """L1 of log10 magnitudes [B, F, T] below 5 kHz."""
    bins = int((estimate.shape[1] - 1) * 2 * _HARMONICS_BELOW / RATE)
    return F.l1_loss(estimate[:, :bins].clamp(min=_FLOOR).log10(), reference[:, :bins].clamp(min=_FLOOR).log10())


def _short_time_distance(output: Tensor, target: Tensor) -> Tensor:
    """L1 of log10-mels of 11 ms windows, with the power averaged over 16 ms."""
    estimate, reference = (_smooth(_magnitude(each, _SHORT_FFT, _SHORT_FFT // 4)) for each in (output, target))
    return 2.0 * mel_distance_of(estimate, reference, _SHORT_FFT, _SHORT_BANDS)


def _smooth(magnitude: Tensor) -> Tensor:
    return F.avg_pool1d(magnitude.square(), 6, 3).clamp(min=1e-10).sqrt()


def mel_distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute log10-mel difference of waveforms [B, N] with 1024-point FFTs; the codec's progress figure."""
    return mel_distance_of(_magnitude(output, 1024, 256), _magnitude(target, 1024, 256), 1024, 80)


def mel_distance_of(estimate: Tensor, reference: Tensor, fft: int, bands: int) -> Tensor:
    """`mel_distance` of magnitudes [B, F, T]."""
    return F.l1_loss(_log_mel(estimate, fft, bands, _FLOOR), _log_mel(reference, fft, bands, _FLOOR))


def mfcc(samples: Tensor) -> Tensor:
    """MFCCs [B, 52, N / 1920] of waveforms [B, N]: four columns of 13 for each frame."""
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


class Crops:
    """Random crops of the corpus, all voices equally often: (waveforms [B, N] in -1..1, voices [B])."""

    def __init__(self, folder: Path, frames: int, seed: int) -> None:
        self._shards = [_VoiceIndex(stem) for stem in shard_stems(folder)]
        self._samples = frames * FRAME
        self._random = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        rows, voices = zip(*(self._crop() for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(rows)).float() / 32768, torch.tensor(voices)

    def _crop(self) -> tuple[NDArray[np.int16], int]:
        """A position drawn uniformly from a voice's samples; one crop in five starts at an utterance's start."""
        shard = self._shards[self._random.integers(len(self._shards))]
        voice = self._random.choice(list(shard.utterances))
        starts, ends = shard.utterances[voice]
        reach = np.cumsum(ends - starts)
        position = self._random.integers(reach[-1])
        index = int(np.searchsorted(reach, position, side="right"))
        start, end = starts[index], ends[index]
        if end - start > self._samples and self._random.random() < 0.8:
            start = min(end - (reach[index] - position), end - self._samples)
        crop = shard.samples[start : min(end, start + self._samples)]
        return np.pad(crop, (0, self._samples - len(crop))), int(voice)


class _VoiceIndex:
    """A shard's samples, with the starts and ends of each voice's utterances."""

    def __init__(self, stem: Path) -> None:
        utterances, self.samples = load_shard(stem)
        ends = np.cumsum([utterance.frames for utterance in utterances]) * FRAME
        starts = np.concatenate(([0], ends[:-1]))
        voices = np.array([utterance.voice for utterance in utterances])
        self.utterances = {voice: (starts[voices == voice], ends[voices == voice]) for voice in np.unique(voices)}


def build_codec(shape: dict[str, object]) -> MimiModel:
    """A codec with random weights, 24 kHz, 12.5 frames per second; `shape` overrides MimiConfig's fields."""
    model = MimiModel(MimiConfig(**shape))
    reserve_code_zero(model)
    return model


@dataclass
class _CodecTrainer:
    plan: CodecPlan
    model: MimiModel
    probe: torch.nn.Conv1d
    statistics: tuple[Tensor, Tensor]
    device: str

    def __post_init__(self) -> None:
        self.quantizer = QuantizerTrainer(self.model)
        parameters = [*self.model.parameters(), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.plan.learning_rate, betas=(0.8, 0.99), weight_decay=1e-4)
        self.step = 0

    def update(self, samples: Tensor, voices: Tensor) -> dict[str, float]:
        """One optimizer step on waveforms [B, N] and their voices [B]."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * _schedule(self.step, self.plan)
        output, semantic, commit = self._round_trip(samples)
        probe = self._probe_loss(semantic, samples, voices) if semantic is not None else torch.zeros_like(commit)
        reconstruction = spectral_loss(output, samples)
        loss = reconstruction + _PROBE_WEIGHT * probe + _COMMIT_WEIGHT * commit
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        mel = mel_distance(output.detach(), samples)
        figures = {"loss": reconstruction, "mel": mel, "probe": probe, "commit": commit, "norm": norm}
        return {name: float(value.detach()) for name, value in figures.items()}

    def _probe_loss(self, semantic: Tensor, samples: Tensor, voices: Tensor) -> Tensor:
        """Error of speaker-normalized MFCCs predicted linearly from codebook 0's vectors [B, D, T]."""
        mean, deviation = self.statistics
        target = (mfcc(samples) - mean[voices]) / deviation[voices]
        return F.mse_loss(self.probe(semantic[:, 1:]), target)

    def _round_trip(self, samples: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(decoded waveforms [B, N], codebook 0's vectors while they are trained, commitment loss)."""
        zero = torch.zeros((), device=samples.device)
        if self.step >= self.plan.freeze_from:
            with torch.no_grad():
                codes = self.model.encode(samples[:, None]).audio_codes
            quantized, semantic, commit = self.model.quantizer.decode(codes), None, zero
        elif self.step < self.plan.quantize_from:
            latents = self.model.encoder(samples[:, None]).latents
            (quantized, semantic), commit = self.quantizer.bypass(latents), zero
        else:
            latents = self.model.encoder(samples[:, None]).latents
            quantized, semantic, commit = self.quantizer(latents, _depth(len(self.quantizer.acoustic.layers)))
        return self.model.decoder(quantized).audio_values[:, 0], semantic, commit

    @torch.no_grad()
    def start_codebooks(self, crops: Crops, vectors: int = 16_000) -> None:
        latents: list[Tensor] = []
        while sum(len(rows) for rows in latents) < vectors:
            samples, _ = crops.batch(self.plan.batch)
            encoded = self.model.encoder(samples[:, None].to(self.device)).latents
            audible = samples.view(len(samples), -1, FRAME).std(dim=-1) > 1e-3  # silence would fill the codebooks
            latents.append(encoded.transpose(1, 2)[audible.to(self.device)])
        self.quantizer.start(torch.cat(latents))

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "statistics": self.statistics,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.probe.load_state_dict(state["probe"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.statistics = state["statistics"]


def train_codec(plan: CodecPlan, corpus: Path, folder: Path) -> MimiModel:
    """Trains to `plan.steps`; resumes from `folder/checkpoint.pt` if it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build_codec(plan.shape).to(device)
    probe = torch.nn.Conv1d(model.config.codebook_dim - 1, 52, 1).to(device)
    checkpoint = folder / "checkpoint.pt"
    state = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.exists() else None
    statistics = state["statistics"] if state else _voice_statistics(Crops(corpus, plan.crop_frames, 0))
    statistics = (statistics[0].to(device), statistics[1].to(device))
    trainer = _CodecTrainer(plan, model, probe, statistics, device)
    if state:
        trainer.load(state)
        _LOG.info("codec: resuming after step %d", trainer.step)
    crops = Crops(corpus, plan.crop_frames, 1 + trainer.step)
    _loop(trainer, crops, checkpoint)
    trainer.quantizer.seal()
    model.save_pretrained(folder / "export")
    return model


def _loop(trainer: _CodecTrainer, crops: Crops, checkpoint: Path) -> None:
    history: list[dict[str, float]] = []
    saved = time.monotonic()
    while trainer.step < trainer.plan.steps:
        if trainer.step == trainer.plan.quantize_from:
            trainer.start_codebooks(crops)
        if trainer.step == trainer.plan.freeze_from:
            trainer.quantizer.seal()
        samples, voices = crops.batch(trainer.plan.batch)
        history.append(trainer.update(samples.to(trainer.device), voices.to(trainer.device)))
        if trainer.step % _LOG_EVERY == 0:
            log_figures(checkpoint.parent, trainer.step, "train", mean_figures(history[-_LOG_EVERY:]))
        if time.monotonic() - saved > _SAVE_SECONDS or trainer.step == trainer.plan.steps:
            save_state(trainer.state(), checkpoint)
            plot_history(checkpoint.parent)
            saved = time.monotonic()


def _schedule(step: int, plan: CodecPlan) -> float:
    """Warm-up and cosine to 5 %: once for the whole codec, then from half the rate for the decoder alone."""
    frozen = step >= plan.freeze_from
    first, last = (plan.freeze_from, plan.steps) if frozen else (0, min(plan.freeze_from, plan.steps))
    warm = min(1.0, (step - first + 1) / 100) * (0.5 if frozen else 1.0)
    progress = (step - first) / max(1, last - first)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _depth(acoustic: int) -> int:
    """Codebook dropout: all acoustic codebooks half of the time, else a random number of them."""
    return acoustic if torch.rand(()) < 0.5 else int(torch.randint(acoustic + 1, ()))


def _voice_statistics(crops: Crops, batches: int = 40) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each voice's MFCCs: two tensors [voices, 52, 1]."""
    drawn = [crops.batch(32) for _ in range(batches)]
    cepstra = torch.cat([mfcc(samples) for samples, _ in drawn])  # [N, 52, T]
    voices = torch.cat([each for _, each in drawn])
    by_voice = [cepstra[voices == voice].transpose(0, 1).flatten(1) for voice in range(len(VOICES))]
    fallback = cepstra.transpose(0, 1).flatten(1)
    by_voice = [each if each.shape[1] > 100 else fallback for each in by_voice]
    mean, deviation = torch.stack([each.mean(1) for each in by_voice]), torch.stack([each.std(1) for each in by_voice])
    return mean[..., None], deviation[..., None].clamp(min=1e-3)
