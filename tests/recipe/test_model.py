"""The bundled voice's training: guided attention, and that a step learns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.voice_model import BACKBONE, CODEC, DEPTH
from transformers import CsmForConditionalGeneration

from csm_cli.recipe.codes import GUIDE, VOICE, CodedUtterance, ConversationMixer, CorpusTurn, conversation_row
from csm_cli.recipe.corpus import CorpusUtterance
from csm_cli.recipe.model import GuidedAttention, VoiceLossModule, model_config, voice_trainer
from csm_cli.recipe.plan import ModelPlan, StagePlan
from csm_cli.train.batches import Batch, collate
from csm_cli.train.loss import LossModule

STAGES = (StagePlan("all", until=60, max_frames=20, dialogues=0.0, voices=1),)
PLAN = ModelPlan(
    STAGES, tokens=80, learning_rate=3e-3, backbone=BACKBONE, depth=DEPTH, warmup_steps=5, guided_layers=(1,)
)


@pytest.fixture
def model() -> CsmForConditionalGeneration:
    torch.manual_seed(0)
    return CsmForConditionalGeneration(model_config(BACKBONE, DEPTH, CODEC))


def utterances(count: int = 3) -> list[CodedUtterance]:
    random = np.random.default_rng(0)
    texts = ["One.", "Two or so.", "Three!"]
    return [
        CodedUtterance(
            CorpusUtterance(texts[index % 3], 0, 5 + index, ((0, 0.0),)),
            random.integers(1, 512, (5 + index, 4)).astype(np.int16),
        )
        for index in range(count)
    ]


def batch() -> Batch:
    return collate([conversation_row([CorpusTurn(0, each, trained=True)]) for each in utterances()])


def test_guided_attention_changes_no_output(model: CsmForConditionalGeneration) -> None:
    rows = batch()
    plain = LossModule(model)(rows)
    guided = GuidedAttention((1,), width=1.5)
    model.backbone_model.set_attn_implementation(GuidedAttention.name)
    found = VoiceLossModule(model, guided, 2)(rows, {GUIDE})
    torch.testing.assert_close(found.backbone, plain.backbone)
    assert found.aux[GUIDE] > 0 and not plain.aux


def test_training_overfits_a_few_utterances(model: CsmForConditionalGeneration) -> None:
    trainer = voice_trainer(model, PLAN, voices=8)
    batches = ConversationMixer(utterances(), 0, PLAN.tokens).batches(STAGES[0])
    figures = [trainer.update([rows], {GUIDE: 0.3}) for rows in itertools.islice(batches, 60)]
    assert figures[-1]["backbone"] < figures[0]["backbone"] / 2
    assert figures[-1][GUIDE] < figures[0][GUIDE]


def test_voice_head_learns_the_voice_of_the_turn(model: CsmForConditionalGeneration) -> None:
    low, high = (
        replace(each, utterance=replace(each.utterance, voice=voice)) for voice, each in enumerate(utterances(2))
    )
    rows = collate(
        [conversation_row([CorpusTurn(voice, each, trained=True)]) for voice, each in enumerate((low, high))]
    )
    trainer = voice_trainer(model, PLAN, voices=8)
    figures = [trainer.update([rows], {VOICE: 1.0}) for _ in range(40)]
    assert figures[-1]["voice"] < figures[0]["voice"] / 4


def test_trainer_state_is_restored(model: CsmForConditionalGeneration) -> None:
    first = voice_trainer(model, PLAN, voices=8)
    first.update([batch()])
    state = first.state_dict()
    torch.manual_seed(1)
    other = voice_trainer(CsmForConditionalGeneration(model.config), PLAN, voices=8)
    other.load_state_dict(state)
    assert other.step == 1
    for name, parameter in first.parameters.items():
        torch.testing.assert_close(other.parameters[name], parameter)


def test_ema_weights_are_swapped_in_and_out(model: CsmForConditionalGeneration) -> None:
    trainer = voice_trainer(model, PLAN, voices=8)
    for _ in range(3):
        trainer.update([batch()])
    name = "model.lm_head.weight"
    before = trainer.parameters[name].detach().clone()
    average = trainer.ema[name].clone()
    with trainer.ema_weights():
        torch.testing.assert_close(trainer.parameters[name].detach(), average)
    torch.testing.assert_close(trainer.parameters[name].detach(), before)
    assert not torch.equal(before, average)


def test_learning_rate_schedule(model: CsmForConditionalGeneration) -> None:
    rates = [voice_trainer(model, PLAN, voices=8).config.lr_ratio(step) for step in range(PLAN.steps)]
    assert rates[0] < rates[4] and max(rates) == max(rates[:8]) and rates[-1] < 0.05
