"""Trains the codec: Mimi's architecture on random crops of the corpus, in float32.

Reconstruction first (this module), then, with the codes frozen, the decoder against discriminators (`adversarial.py`).
"""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import MimiConfig, MimiModel

from csm_cli.recipe.codec_crops import PHONEMES, CorpusCrops
from csm_cli.recipe.codec_growth import grow_codec
from csm_cli.recipe.corpus import FRAME
from csm_cli.recipe.natural_corpus import COLUMNS, held_out_stems, training_stems
from csm_cli.recipe.quantizer import QuantizerTrainer, reserve_code_zero
from csm_cli.recipe.spectral import mel_distance, spectral_loss
from csm_cli.storage.folders import replace_folder
from csm_cli.train.batches import IGNORE
from csm_cli.train.history import append_figures, plot_history, save_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from csm_cli.recipe.plan import CodecPlan

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 50
_HELD_OUT_FRAMES, _HELD_OUT_ROWS, _HELD_OUT_BATCHES = 48, 3, 2
_KMEANS_VECTORS = 24_000
_WARM_UP = 100
_LAST_LEARNING_RATE = 0.05  # of the full one


def log_figures(folder: Path, step: int, split: str, figures: Mapping[str, float]) -> None:
    """Appends figures to `folder/history.jsonl` and logs them."""
    _LOG.info(
        "%s %d %s: %s", folder.name, step, split, " ".join(f"{key} {value:.3f}" for key, value in figures.items())
    )
    append_figures(folder, step, split, figures)


def mean_figures(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(record[name] for record in records) / len(records) for name in records[0]}


def build_codec(shape: dict[str, Any]) -> MimiModel:
    """A fresh codec at 24 kHz and 12.5 frames a second; `shape` overrides MimiConfig's fields."""
    model = MimiModel(MimiConfig(**shape))
    reserve_code_zero(model)
    return model


class CodecTrainer:
    """One codec under training: its optimizer, moving averages of its weights, and a phoneme classifier.

    The classifier reads four phonemes a frame off codebook 0's vectors, which makes that codebook say what is said.
    """

    def __init__(self, plan: CodecPlan, model: MimiModel) -> None:
        self.plan, self.model, self.step = plan, model, 0
        self.quantizer = QuantizerTrainer(model, plan.codebook_decay)
        device = next(model.parameters()).device
        self._probe = torch.nn.Conv1d(model.config.codebook_dim - 1, COLUMNS * len(PHONEMES), 1).to(device)
        self._parameters = [*model.parameters(), *self._probe.parameters()]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=plan.learning_rate, betas=(0.8, 0.99), weight_decay=1e-4
        )
        self._ema = {name: value.detach().clone() for name, value in model.named_parameters()}

    def update(self, samples: Tensor, phonemes: Tensor) -> dict[str, float]:
        """One optimizer step on waveforms [B, N] and phoneme classes [B, 4, T]; the figures it had before."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self._schedule()
        output, semantic, commitment, size = self._round_trip(samples)
        reconstruction, phoneme = spectral_loss(output, samples), self._phoneme_loss(semantic, phonemes)
        loss = reconstruction + self.plan.phoneme_weight * phoneme + self.plan.commitment_weight * commitment
        loss = loss + self.plan.size_weight * size
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        if torch.isfinite(norm):
            self._optimizer.step()
        self.step += 1
        self._update_ema()
        mel = mel_distance(output.detach(), samples)
        figures = {"loss": reconstruction, "mel": mel, "phoneme": phoneme, "commitment": commitment, "norm": norm}
        figures["size"] = size
        return {name: float(value.detach()) for name, value in figures.items()}

    def _round_trip(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(decoded waveforms [B, N], codebook 0's vectors [B, D, T], commitment loss, excess size)."""
        latents = self.model.encoder(samples[:, None]).latents
        if self.step < self.plan.quantize_from:
            (quantized, semantic), commitment = self.quantizer.bypass(latents), samples.new_zeros(())
        else:
            depths, bypassed = self._draw_dropout(len(samples))
            quantized, semantic, commitment = self.quantizer(latents, depths, bypassed)
        output = self.model.decoder(quantized).audio_values[:, 0]
        return output, semantic, commitment, self.quantizer.excess_size(latents)

    def _draw_dropout(self, rows: int) -> tuple[Tensor, Tensor]:
        """For each row: how many acoustic codebooks it gets, and whether it stays without rounding."""
        device, acoustic = self._probe.weight.device, len(self.quantizer.acoustic.layers)
        shortened = torch.rand(rows, device=device) < self.plan.depth_dropout
        fewer = torch.randint(1, acoustic, (rows,), device=device)
        depths = torch.where(shortened, fewer, torch.full_like(fewer, acoustic))
        return depths, torch.rand(rows, device=device) < self.plan.bypass

    def _phoneme_loss(self, semantic: Tensor, phonemes: Tensor) -> Tensor:
        if not (phonemes != IGNORE).any():
            return semantic.new_zeros(())
        logits = self._probe(semantic[:, 1:]).unflatten(1, (COLUMNS, -1)).transpose(1, 2)  # [B, P, 4, T]
        return F.cross_entropy(logits, phonemes, ignore_index=IGNORE)

    def _schedule(self) -> float:
        """Warm-up, then constant, then linearly down from `decay_from` to the last step: of the full learning rate."""
        plan = self.plan
        decay = max(0.0, (self.step - plan.decay_from) / max(1, plan.steps - plan.decay_from))
        return min(1.0, (self.step + 1) / _WARM_UP) * max(_LAST_LEARNING_RATE, 1.0 - decay)

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.plan.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self._ema.values()), list(self.model.parameters()), 1 - decay)

    @torch.no_grad()
    def start_codebooks(self, crops: CorpusCrops) -> None:
        """Sets the codebooks by k-means on the latents of the corpus, of its silence only a tenth."""
        found: list[Tensor] = []
        while sum(map(len, found)) < _KMEANS_VECTORS:
            samples = crops.batch(8)[0].to(self._probe.weight.device)
            latents = self.model.encoder(samples[:, None]).latents.transpose(1, 2)
            loud = samples.view(len(samples), -1, FRAME).std(dim=-1) > 1e-3
            found.append(latents[loud | (torch.rand(loud.shape, device=loud.device) < 0.1)])
        self.quantizer.start(torch.cat(found))

    @torch.no_grad()
    def averaged(self) -> MimiModel:
        """A copy of the codec with averaged weights and codebooks as a checkpoint stores them."""
        model = copy.deepcopy(self.model).eval()
        for name, value in model.named_parameters():
            value.copy_(self._ema[name])
        reserve_code_zero(model)
        QuantizerTrainer(model).seal()
        return model

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Tensor]) -> dict[str, float]:
        """Losses of the averaged codec on held-out waveforms, through codes once there are any."""
        model, figures = self.averaged(), []
        for samples in batches:
            if self.step <= self.plan.quantize_from:
                quantized, _ = QuantizerTrainer(model).bypass(model.encoder(samples[:, None]).latents)
                output = model.decoder(quantized).audio_values[:, 0]
            else:
                output = model.decode(model.encode(samples[:, None]).audio_codes).audio_values[:, 0]
            figures.append({"loss": float(spectral_loss(output, samples)), "mel": float(mel_distance(output, samples))})
        return mean_figures(figures)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "probe": self._probe.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._probe.load_state_dict(state["probe"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._ema = state["ema"]


def train_codec(plan: CodecPlan, corpus: Path, folder: Path) -> MimiModel:
    """Trains to `plan.steps`, going on from `folder/checkpoint.pt` if it is there; the codec is in `folder/export`."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build_codec(plan.shape) if plan.start is None else grow_codec(plan.start, plan.shape)
    trainer = CodecTrainer(plan, model.to(device))
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, map_location=device, weights_only=True))
        _LOG.info("codec: going on from step %d", trainer.step)
    torch.manual_seed(1 + trainer.step)
    crops = CorpusCrops(training_stems(corpus), plan.crop_frames, 1 + trainer.step)
    watched = CorpusCrops(held_out_stems(corpus) or training_stems(corpus), _HELD_OUT_FRAMES, seed=7)
    held_out = [watched.batch(_HELD_OUT_ROWS)[0].to(device) for _ in range(_HELD_OUT_BATCHES)]
    history: list[dict[str, float]] = []
    saved = time.monotonic()
    while trainer.step < plan.steps:
        if trainer.step == plan.quantize_from:
            trainer.start_codebooks(crops)
        samples, phonemes = crops.batch(plan.batch)
        history.append(trainer.update(samples.to(device), phonemes.to(device)))
        last = trainer.step == plan.steps
        if trainer.step % _LOG_EVERY == 0:
            log_figures(folder, trainer.step, "train", mean_figures(history[-_LOG_EVERY:]))
        if trainer.step % plan.evaluate_every == 0 or last:
            log_figures(folder, trainer.step, "held_out", trainer.evaluate(held_out))
            export_codec(trainer.averaged(), folder / "export")
            plot_history(folder)
        if time.monotonic() - saved > plan.save_seconds or last:
            save_state(trainer.state(), checkpoint)
            saved = time.monotonic()
    return trainer.averaged()


def export_codec(model: MimiModel, folder: Path) -> None:
    """Writes the codec as a folder that MimiModel.from_pretrained reads, float16; replaces `folder` at once."""
    with replace_folder(folder, "checkpoint") as fresh:
        copy.deepcopy(model).half().save_pretrained(fresh)
