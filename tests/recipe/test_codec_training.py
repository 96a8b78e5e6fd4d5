"""The codec's training in small: it learns, resumes, grows from a smaller codec, and follows discriminators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipe.test_model import BACKBONE, CODEC, DEPTH
from transformers import CsmForConditionalGeneration, MimiModel

from csm_cli.recipe.adversarial import AdversarialTrainer
from csm_cli.recipe.codec import CodecTrainer, build_codec, export_codec
from csm_cli.recipe.codec_growth import grow_codec
from csm_cli.recipe.discriminators import Discriminators
from csm_cli.recipe.export import export_voice
from csm_cli.recipe.model import model_config
from csm_cli.recipe.plan import AdversarialPlan, CodecPlan, SamplingPlan
from csm_cli.recipe.quantizer import QuantizerTrainer
from csm_cli.train.history import save_state

PLAN = CodecPlan(steps=20, quantize_from=0, batch=2, crop_frames=4, learning_rate=1e-3, decay_from=15, shape={**CODEC})


@pytest.fixture
def crops() -> tuple[torch.Tensor, torch.Tensor]:
    """Two waveforms of four frames and their phoneme classes."""
    torch.manual_seed(0)
    time = torch.arange(4 * 1920) / 24_000
    samples = torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * time) for pitch in (200.0, 310.0)])
    return samples, torch.randint(60, (2, 4, 4))


def started(plan: CodecPlan) -> CodecTrainer:
    torch.manual_seed(1)
    trainer = CodecTrainer(plan, build_codec(plan.shape))
    trainer.quantizer.start(torch.randn(600, 16), iterations=1)
    return trainer


def test_a_step_lowers_the_phoneme_loss_and_counts(crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    trainer = started(replace(PLAN, learning_rate=0.02))
    figures = [trainer.update(*crops) for _ in range(12)]
    assert trainer.step == 12
    assert figures[-1]["phoneme"] < figures[0]["phoneme"]
    assert set(figures[0]) == {"loss", "mel", "phoneme", "commitment", "norm", "size"}


def test_latents_that_grow_are_pulled_back() -> None:
    quantizer = QuantizerTrainer(build_codec(PLAN.shape))
    latents = torch.randn(2, quantizer.acoustic.input_proj.weight.shape[1], 50)
    assert quantizer.excess_size(0.01 * latents) == 0
    large = (1000 * torch.ones_like(latents)).requires_grad_()
    size = quantizer.excess_size(large)
    size.backward()
    assert size > 0 and large.grad is not None and (large.grad * large).sum() > 0


def test_speech_without_phonemes_is_learned_all_the_same(crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    figures = started(PLAN).update(crops[0], torch.full_like(crops[1], -100))
    assert figures["phoneme"] == 0 and figures["loss"] > 0


def test_a_resumed_run_takes_the_same_step(tmp_path: Path, crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    first = started(PLAN)
    first.update(*crops)
    second = CodecTrainer(PLAN, build_codec(PLAN.shape))
    save_state(first.state(), tmp_path / "state.pt")
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    figures = []
    for trainer in (first, second):
        torch.manual_seed(5)
        figures.append(trainer.update(*crops))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


def test_the_export_is_what_transformers_reads(tmp_path: Path, crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    trainer = started(PLAN)
    trainer.update(*crops)
    averaged = trainer.averaged()
    export_codec(averaged, tmp_path / "codec")
    loaded = MimiModel.from_pretrained(tmp_path / "codec", dtype=torch.float32)
    codes = averaged.encode(crops[0][:, None]).audio_codes
    torch.testing.assert_close(
        loaded.decode(codes).audio_values, averaged.decode(codes).audio_values, rtol=0.05, atol=1e-3
    )
    assert codes[:, 0].min() >= 1
    assert trainer.evaluate([crops[0]])["loss"] > 0


def test_a_grown_codec_computes_what_the_small_one_does(
    tmp_path: Path, crops: tuple[torch.Tensor, torch.Tensor]
) -> None:
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(model_config(BACKBONE, DEPTH, CODEC))
    model.codec_model = build_codec(CODEC)
    QuantizerTrainer(model.codec_model).start(torch.randn(600, 16), iterations=1)
    export_voice(model, SamplingPlan(), tmp_path / "voice")
    more = {"num_residual_layers": 1, "num_hidden_layers": CODEC["num_hidden_layers"] + 1, "codebook_size": 1024}
    grown = grow_codec(tmp_path / "voice", more).eval()
    small = CsmForConditionalGeneration.from_pretrained(tmp_path / "voice").codec_model.eval()
    with torch.no_grad():
        latents = [codec.encoder(crops[0][:, None]).latents for codec in (small, grown)]
        audio = [codec.decoder(latents[0]).audio_values for codec in (small, grown)]
    torch.testing.assert_close(latents[1], latents[0])
    torch.testing.assert_close(audio[1], audio[0])
    assert grown.config.codebook_size == 1024


def test_discriminators_learn_to_tell_two_sounds_apart(crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    judges = Discriminators(windows=(512, 256), channels=4)
    optimizer = torch.optim.Adam(judges.parameters(), lr=3e-3)
    real, fake = crops[0], torch.randn_like(crops[0]) * 0.2
    losses = []
    for _ in range(15):
        loss = judges.discriminator_loss(real, fake)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    adversarial, matching = judges.generator_losses(real, real)
    assert float(matching.detach()) == 0 and float(adversarial.detach()) < 1


def test_the_second_stage_moves_the_decoder_alone(crops: tuple[torch.Tensor, torch.Tensor]) -> None:
    codec = started(PLAN).averaged()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    plan = AdversarialPlan(steps=2, windows=(512,), channels=4, discriminators_alone=1)
    trainer = AdversarialTrainer(plan, codec)
    first, second = trainer.update(crops[0]), trainer.update(crops[0])
    assert first["adversarial"] == 0 < second["adversarial"]
    moved = {name for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("decoder.") for name in moved)
    again = AdversarialTrainer(plan, started(PLAN).averaged())
    again.load(trainer.state())
    assert again.step == 2
    names = dict(again.averaged().decoder.named_parameters())
    assert all(torch.equal(value, names[name]) for name, value in trainer.averaged().decoder.named_parameters())
