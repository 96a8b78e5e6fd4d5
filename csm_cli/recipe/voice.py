"""The recipe of the bundled voice: `python -m csm_cli.recipe.voice configs/voice/cpu.yaml`.

Stages, each of which resumes after an interruption: corpus, codec, codes, model, export.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import CsmForConditionalGeneration, MimiModel

from csm_cli.recipe.adversarial import refine_decoder
from csm_cli.recipe.codec import export_codec, train_codec
from csm_cli.recipe.codes import CorpusTurn, conversation_row, encode_shards, load_utterances
from csm_cli.recipe.corpus import PRACTICE_VOICES, VOICES, Espeak, shard_stems, write_corpus
from csm_cli.recipe.export import export_voice, plot_samples, sample_sentences, save_samples, summary
from csm_cli.recipe.model import RecipeJob, model_config, train_model
from csm_cli.recipe.natural_corpus import held_out_stems, training_stems, write_natural_corpus
from csm_cli.recipe.parametric_teacher import VoiceTeachers
from csm_cli.recipe.plan import CorpusPlan, TeacherPlan, VoicePlan, read_plan
from csm_cli.recipe.reference_voices import write_voices
from csm_cli.recipe.sentences import held_out_sentences
from csm_cli.train.batches import Batch, collate
from csm_cli.train.history import plot_history

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOG = logging.getLogger(__name__)
STAGES = ("corpus", "codec", "codes", "model", "export")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages from the first to `--until`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="a file of configs/voice/")
    parser.add_argument("--until", choices=STAGES, default="export", help="last stage to run")
    parser.add_argument("--from-voice", type=Path, help="start from the weights of this checkpoint folder")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build_voice(read_plan(options.plan), options.until, options.from_voice)


def build_voice(plan: VoicePlan, until: str = "export", start: Path | None = None) -> None:
    """Runs the recipe in `plan.folder`; its last stage writes `plan.target`. start: checkpoint to start from."""
    for stage in STAGES[: STAGES.index(until) + 1]:
        _LOG.info("stage: %s", stage)
        _RUN[stage](plan, start)


def _corpus(plan: VoicePlan, _: Path | None) -> None:
    folder = plan.folder / "corpus"
    if isinstance(plan.corpus, TeacherPlan):
        write_natural_corpus(folder, plan.corpus, VoiceTeachers(plan.corpus.tools))
        if hours := plan.corpus.practice_hours:
            practice = CorpusPlan(hours, seed=plan.corpus.seed)
            write_corpus(plan.folder / "practice", practice, PRACTICE_VOICES, len(plan.corpus.voices))
    else:
        write_corpus(folder, plan.corpus)


def _codec(plan: VoicePlan, start: Path | None) -> None:
    folder, corpus = plan.folder / "codec", plan.folder / "corpus"
    if start is not None:
        codec = CsmForConditionalGeneration.from_pretrained(start).codec_model
    else:
        codec = train_codec(plan.codec, corpus, folder)
        if plan.codec.adversarial:
            codec = refine_decoder(plan.codec.adversarial, codec, corpus, folder)
    export_codec(codec, folder / "export")


def _codes(plan: VoicePlan, _: Path | None) -> None:
    codec = _load_codec(plan)
    encode_shards(codec, shard_stems(plan.folder / "corpus"), plan.folder / "codes")
    encode_shards(codec, shard_stems(plan.folder / "practice"), plan.folder / "practice-codes")


def _model(plan: VoicePlan, start: Path | None) -> None:
    model = new_model(plan) if start is None else CsmForConditionalGeneration.from_pretrained(start)
    utterances = load_utterances(training_stems(plan.folder / "corpus"), plan.folder / "codes")
    practice = load_utterances(shard_stems(plan.folder / "practice"), plan.folder / "practice-codes")
    utterances *= max(1, round(len(practice) / len(utterances)))  # about as often as the practice
    utterances += practice
    voices = len(VOICES)
    if isinstance(plan.corpus, TeacherPlan):
        voices = len(plan.corpus.voices) + (len(PRACTICE_VOICES) if practice else 0)
    job = RecipeJob(utterances, voices, held_out_batches(plan), plan.folder / "model", _SaveHook(plan))
    train_model(model.to(_device()), plan.model, job)


def _export(plan: VoicePlan, _: Path | None) -> None:
    model = CsmForConditionalGeneration.from_pretrained(plan.folder / "export-latest")
    model.codec_model = _load_codec(plan).cpu()
    export_voice(model, plan.sampling, plan.target)
    if isinstance(plan.corpus, TeacherPlan):
        write_voices(plan.target, list(plan.corpus.voices))
    plot_samples(sample_sentences(model, Espeak(), held_out_sentences()[:3]), plan.target / "samples.png")


_RUN = {"corpus": _corpus, "codec": _codec, "codes": _codes, "model": _model, "export": _export}


def new_model(plan: VoicePlan) -> CsmForConditionalGeneration:
    """A model around the trained codec, with random weights but for those of `plan.model.start`."""
    torch.manual_seed(0)
    codec = _load_codec(plan)
    model = CsmForConditionalGeneration(model_config(plan.model.backbone, plan.model.depth, codec.config.to_dict()))
    model.codec_model = codec
    if plan.model.start:
        known = CsmForConditionalGeneration.from_pretrained(plan.model.start)
        for part in ("embed_text_tokens", "backbone_model.layers", "backbone_model.norm"):
            model.get_submodule(part).load_state_dict(known.get_submodule(part).state_dict())
    return model


def held_out_batches(plan: VoicePlan, count: int = 48) -> list[Batch]:
    """Batches of about `count` utterances of the held-out shards, without context."""
    stems = held_out_stems(plan.folder / "corpus") or training_stems(plan.folder / "corpus")
    spoken = [each for stem in stems for each in load_utterances([stem], plan.folder / "codes")[: count // len(stems)]]
    rows = [conversation_row([CorpusTurn(each.utterance.voice, each, trained=True)]) for each in spoken]
    return [collate(rows[start : start + 16]) for start in range(0, len(rows), 16)]


class _SaveHook:
    """At every save: exports the averaged weights and plots the losses; at some: generates previews."""

    def __init__(self, plan: VoicePlan) -> None:
        self._plan = plan
        self._espeak = Espeak()
        self._saves = 0

    def __call__(self, model: CsmForConditionalGeneration, step: int) -> None:
        folder = self._plan.folder / "export-latest"
        export_voice(model, self._plan.sampling, folder)
        plot_history(self._plan.folder / "model")
        self._saves += 1
        if self._saves % self._plan.preview_every == 0:
            exported = CsmForConditionalGeneration.from_pretrained(folder)
            texts = held_out_sentences()[: self._plan.preview_sentences]
            samples = sample_sentences(exported, self._espeak, texts)
            save_samples(samples, self._plan.folder / "samples")
            figures = summary(samples)
            _LOG.info("preview at %d: %s", step, json.dumps(figures))
            (folder / "preview.json").write_text(json.dumps({"step": step, **figures}) + "\n")


def _load_codec(plan: VoicePlan) -> MimiModel:
    codec = MimiModel.from_pretrained(plan.folder / "codec" / "export", dtype=torch.float32)
    return codec.to(_device()).eval()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
