"""The codec's second stage: codes frozen, the decoder learns against discriminators."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.recipe.codec import export_codec, log_figures, mean_figures
from csm_cli.recipe.codec_crops import CorpusCrops
from csm_cli.recipe.discriminators import Discriminators
from csm_cli.recipe.natural_corpus import training_stems
from csm_cli.recipe.spectral import mel_distance, spectral_loss
from csm_cli.train.history import save_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import MimiModel

    from csm_cli.recipe.plan import AdversarialPlan

_LOG = logging.getLogger(__name__)
_LOG_EVERY = 50
_BETAS = (0.8, 0.99)


class AdversarialTrainer:
    """The decoder of `model` against discriminators; encoder and codebooks stay as they are."""

    def __init__(self, plan: AdversarialPlan, model: MimiModel) -> None:
        self.plan, self.model, self.step = plan, model, 0
        model.requires_grad_(False)
        model.decoder.requires_grad_(True)
        device = next(model.parameters()).device
        self.discriminators = Discriminators(tuple(plan.windows), plan.channels).to(device)
        self._decoder = torch.optim.AdamW(model.decoder.parameters(), lr=plan.learning_rate, betas=_BETAS)
        self._judges = torch.optim.AdamW(
            self.discriminators.parameters(), lr=plan.discriminator_learning_rate, betas=_BETAS
        )
        self._ema = {name: value.detach().clone() for name, value in model.decoder.named_parameters()}

    def update(self, samples: Tensor) -> dict[str, float]:
        """One step of both sides on waveforms [B, N]; the decoder follows the reconstruction alone at first."""
        with torch.no_grad():
            quantized = self.model.quantizer.decode(self.model.encode(samples[:, None]).audio_codes)
        output = self.model.decoder(quantized).audio_values[:, 0]
        judged = self.discriminators.discriminator_loss(samples, output)
        _step(self._judges, judged, self.discriminators)
        reconstruction = spectral_loss(output, samples)
        loss = reconstruction * self.plan.reconstruction_weight
        adversarial = matching = samples.new_zeros(())
        if self.step >= self.plan.discriminators_alone:
            self.discriminators.requires_grad_(False)
            adversarial, matching = self.discriminators.generator_losses(samples, output)
            self.discriminators.requires_grad_(True)
            loss = loss + self.plan.adversarial_weight * adversarial + self.plan.matching_weight * matching
        _step(self._decoder, loss, self.model.decoder)
        self.step += 1
        self._update_ema()
        mel = mel_distance(output.detach(), samples)
        figures = {"loss": reconstruction, "mel": mel, "judged": judged, "adversarial": adversarial, "match": matching}
        return {name: float(value.detach()) for name, value in figures.items()}

    @torch.no_grad()
    def _update_ema(self) -> None:
        torch._foreach_lerp_(list(self._ema.values()), list(self.model.decoder.parameters()), 1 - self.plan.ema_decay)

    @torch.no_grad()
    def averaged(self) -> MimiModel:
        """A copy of the codec with the decoder's averaged weights."""
        model = copy.deepcopy(self.model).eval()
        for name, value in model.decoder.named_parameters():
            value.copy_(self._ema[name])
        return model

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "decoder": self.model.decoder.state_dict(),
            "discriminators": self.discriminators.state_dict(),
            "optimizers": [self._decoder.state_dict(), self._judges.state_dict()],
            "ema": self._ema,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step, self._ema = state["step"], state["ema"]
        self.model.decoder.load_state_dict(state["decoder"])
        self.discriminators.load_state_dict(state["discriminators"])
        for optimizer, selected in zip((self._decoder, self._judges), state["optimizers"], strict=True):
            optimizer.load_state_dict(selected)


def refine_decoder(plan: AdversarialPlan, model: MimiModel, corpus: Path, folder: Path) -> MimiModel:
    """Trains the decoder to `plan.steps`, going on from `folder/adversarial.pt`; the codec is in `folder/export`."""
    device = next(model.parameters()).device
    trainer = AdversarialTrainer(plan, model)
    checkpoint = folder / "adversarial.pt"
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, map_location=device, weights_only=True))
        _LOG.info("adversarial: going on from step %d", trainer.step)
    crops = CorpusCrops(training_stems(corpus), plan.crop_frames, 100 + trainer.step)
    history: list[dict[str, float]] = []
    saved = time.monotonic()
    while trainer.step < plan.steps:
        history.append(trainer.update(crops.batch(plan.batch)[0].to(device)))
        last = trainer.step == plan.steps
        if trainer.step % _LOG_EVERY == 0:
            log_figures(folder, trainer.step, "adversarial", mean_figures(history[-_LOG_EVERY:]))
        if time.monotonic() - saved > plan.save_seconds or last:
            save_state(trainer.state(), checkpoint)
            export_codec(trainer.averaged(), folder / "export")
            saved = time.monotonic()
    return trainer.averaged()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, module: torch.nn.Module) -> None:
    """One optimizer step, its gradients clipped; left out where they are not finite."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    if torch.isfinite(norm):
        optimizer.step()
