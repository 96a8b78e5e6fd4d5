"""Train the codec: Mimi's architecture from nothing, on crops of the corpus, in float32."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import MimiConfig, MimiModel

from csm_cli.recipe.corpus import FRAME, VOICES, load_shard, shard_stems
from csm_cli.recipe.quantizer import QuantizerTrainer, reserve_code_zero
from csm_cli.recipe.spectral import mel_distance, mfcc, spectral_loss
from csm_cli.train.progress import log_figures, mean, plot_history, save_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from csm_cli.recipe.plan import CodecPlan

_LOG = logging.getLogger(__name__)
_SAVE_SECONDS = 120.0
_LOG_EVERY = 20
_PROBE_WEIGHT, _COMMIT_WEIGHT = 0.5, 0.1


class Crops:
    """Random crops of the corpus, every voice as often: (waveforms [B, N] in -1..1, voices [B])."""

    def __init__(self, folder: Path, frames: int, seed: int) -> None:
        self._shards = [_Shard(stem) for stem in shard_stems(folder)]
        self._samples = frames * FRAME
        self._random = np.random.default_rng(seed)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        rows, voices = zip(*(self._crop() for _ in range(size)), strict=True)
        return torch.from_numpy(np.stack(rows)).float() / 32768, torch.tensor(voices)

    def _crop(self) -> tuple[NDArray[np.int16], int]:
        """A place drawn by the samples of a voice; one crop in five begins where its utterance does."""
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


class _Shard:
    """A shard's samples, and where each voice's utterances start and end in them."""

    def __init__(self, stem: Path) -> None:
        utterances, self.samples = load_shard(stem)
        ends = np.cumsum([utterance.frames for utterance in utterances]) * FRAME
        starts = np.concatenate(([0], ends[:-1]))
        voices = np.array([utterance.voice for utterance in utterances])
        self.utterances = {voice: (starts[voices == voice], ends[voices == voice]) for voice in np.unique(voices)}


def build_codec(shape: dict[str, object]) -> MimiModel:
    """A fresh codec at 24 kHz and 12.5 frames a second; `shape` overrides MimiConfig's fields."""
    model = MimiModel(MimiConfig(**shape))
    reserve_code_zero(model)
    return model


@dataclass
class _Trainer:
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
        """How badly speaker-normalized MFCCs are read off codebook 0 [B, D, T]."""
        mean, deviation = self.statistics
        target = (mfcc(samples) - mean[voices]) / deviation[voices]
        return F.mse_loss(self.probe(semantic[:, 1:]), target)

    def _round_trip(self, samples: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """(decoded waveforms [B, N], codebook 0's vectors if they are learned, commitment loss)."""
        nothing = torch.zeros((), device=samples.device)
        if self.step >= self.plan.freeze_from:
            with torch.no_grad():
                codes = self.model.encode(samples[:, None]).audio_codes
            quantized, semantic, commit = self.model.quantizer.decode(codes), None, nothing
        elif self.step < self.plan.quantize_from:
            latents = self.model.encoder(samples[:, None]).latents
            (quantized, semantic), commit = self.quantizer.bypass(latents), nothing
        else:
            latents = self.model.encoder(samples[:, None]).latents
            quantized, semantic, commit = self.quantizer(latents, _depth(len(self.quantizer.acoustic.layers)))
        return self.model.decoder(quantized).audio_values[:, 0], semantic, commit

    @torch.no_grad()
    def start_codebooks(self, crops: Crops, vectors: int = 16_000) -> None:
        latents: list[Tensor] = []
        while sum(len(rows) for rows in latents) < vectors:
            samples, _ = crops.batch(self.plan.batch)
            found = self.model.encoder(samples[:, None].to(self.device)).latents
            loud = samples.view(len(samples), -1, FRAME).std(dim=-1) > 1e-3  # silence would fill the codebooks
            latents.append(found.transpose(1, 2)[loud.to(self.device)])
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
    """Train to `plan.steps`, going on from `folder/checkpoint.pt` if it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build_codec(plan.shape).to(device)
    probe = torch.nn.Conv1d(model.config.codebook_dim - 1, 52, 1).to(device)
    checkpoint = folder / "checkpoint.pt"
    state = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.exists() else None
    statistics = state["statistics"] if state else _voice_statistics(Crops(corpus, plan.crop_frames, 0))
    statistics = (statistics[0].to(device), statistics[1].to(device))
    trainer = _Trainer(plan, model, probe, statistics, device)
    if state:
        trainer.load(state)
        _LOG.info("codec: going on from step %d", trainer.step)
    crops = Crops(corpus, plan.crop_frames, 1 + trainer.step)
    _loop(trainer, crops, checkpoint)
    trainer.quantizer.seal()
    model.save_pretrained(folder / "export")
    return model


def _loop(trainer: _Trainer, crops: Crops, checkpoint: Path) -> None:
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
            log_figures(checkpoint.parent, trainer.step, "train", mean(history[-_LOG_EVERY:]))
        if time.monotonic() - saved > _SAVE_SECONDS or trainer.step == trainer.plan.steps:
            save_atomically(trainer.state(), checkpoint)
            plot_history(checkpoint.parent)
            saved = time.monotonic()


def _schedule(step: int, plan: CodecPlan) -> float:
    """Warm-up and cosine down to 5 %, once for the whole codec and once more, from half, for the decoder alone."""
    frozen = step >= plan.freeze_from
    first, last = (plan.freeze_from, plan.steps) if frozen else (0, min(plan.freeze_from, plan.steps))
    warm = min(1.0, (step - first + 1) / 100) * (0.5 if frozen else 1.0)
    progress = (step - first) / max(1, last - first)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _depth(acoustic: int) -> int:
    """Codebook dropout: all acoustic codebooks half of the time, else any number of them."""
    return acoustic if torch.rand(()) < 0.5 else int(torch.randint(acoustic + 1, ()))


def _voice_statistics(crops: Crops, batches: int = 40) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each voice's MFCCs: two [voices, 52, 1]."""
    found = [crops.batch(32) for _ in range(batches)]
    cepstra = torch.cat([mfcc(samples) for samples, _ in found])  # [N, 52, T]
    voices = torch.cat([rows for _, rows in found])
    pick = [cepstra[voices == voice].transpose(0, 1).flatten(1) for voice in range(len(VOICES))]
    fallback = cepstra.transpose(0, 1).flatten(1)
    pick = [rows if rows.shape[1] > 100 else fallback for rows in pick]
    mean, deviation = torch.stack([r.mean(1) for r in pick]), torch.stack([r.std(1) for r in pick])
    return mean[..., None], deviation[..., None].clamp(min=1e-3)
