"""The whole recipe in small: it runs, resumes, and makes a checkpoint that speaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CsmForConditionalGeneration

from csm_cli.recipe.corpus import PRACTICE_VOICES, load_shard, write_corpus
from csm_cli.recipe.plan import CorpusPlan, read_plan
from csm_cli.recipe.voice import build_voice, new_model

pytestmark = pytest.mark.espeak

CONFIGS = Path(__file__).parents[2] / "configs" / "voice"


@pytest.mark.parametrize("name", ["cpu", "gpu", "smoke"])
def test_plans_can_be_read(name: str) -> None:
    plan = read_plan(CONFIGS / f"{name}.yaml")
    assert plan.codec.quantize_from < plan.codec.decay_from <= plan.codec.steps
    assert [stage.until for stage in plan.model.stages] == sorted(stage.until for stage in plan.model.stages)


@pytest.mark.slow
def test_the_recipe_runs_and_resumes(tmp_path: Path) -> None:
    plan = replace(read_plan(CONFIGS / "smoke.yaml"), folder=tmp_path / "work", target=tmp_path / "voice")
    build_voice(plan, until="codes")
    codes = (tmp_path / "work" / "codes" / "000.npy").stat().st_mtime_ns
    build_voice(plan)
    assert (tmp_path / "work" / "codes" / "000.npy").stat().st_mtime_ns == codes
    assert (tmp_path / "work" / "model" / "loss.png").exists()
    assert (tmp_path / "work" / "samples" / "00.wav").exists()
    voice = CsmForConditionalGeneration.from_pretrained(tmp_path / "voice")
    assert voice.config.num_codebooks == plan.codec.shape["num_quantizers"]
    again = replace(plan, folder=tmp_path / "again")
    build_voice(again, until="corpus")
    build_voice(again, start=tmp_path / "voice")
    last = CsmForConditionalGeneration.from_pretrained(tmp_path / "voice")
    grown = new_model(replace(plan, model=replace(plan.model, start=tmp_path / "voice")))
    torch.testing.assert_close(grown.embed_text_tokens.weight, last.embed_text_tokens.weight)
    assert not torch.equal(grown.depth_decoder.codebooks_head.weight, last.depth_decoder.codebooks_head.weight)


def test_practice_speech_has_voices_after_the_teachers(tmp_path: Path) -> None:
    write_corpus(tmp_path, CorpusPlan(hours=0.01), PRACTICE_VOICES, first_voice=4)
    utterances, samples = load_shard(tmp_path / "000")
    assert {utterance.voice for utterance in utterances} == {4, 5}
    assert sum(utterance.frames for utterance in utterances) * 1920 == len(samples)
