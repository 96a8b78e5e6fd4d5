"""Settings of the recipe: one YAML file under `configs/voice/` as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class CorpusPlan:
    """espeak-ng's corpus: hours of speech; fixed_share: share of utterances in the two voices of speakers 0 and 1."""

    hours: float
    fixed_share: float = 0.5
    seed: int = 1


@dataclass(frozen=True)
class TeacherPlan:
    """A natural teacher's corpus: hours of each of its voices, in the order of the voices' numbers.

    tools: where the teacher is set up. recorded: folders of shards spoken earlier, which come first; their voices must
    be named, with 0 hours if none are to be added. practice_hours: of espeak-ng's speech in two further voices, from
    which the model alone learns how words are spoken that the teacher has not said.
    """

    tools: Path
    voices: dict[str, float]
    recorded: tuple[Path, ...] = ()
    practice_hours: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class AdversarialPlan:
    """The codec's second stage: `steps` of the decoder against discriminators at `windows` samples.

    The decoder follows the reconstruction alone until step `discriminators_alone`.
    """

    steps: int
    batch: int = 3
    crop_frames: int = 12
    windows: tuple[int, ...] = (2048, 1024, 512, 256)
    channels: int = 8
    learning_rate: float = 3e-4
    discriminator_learning_rate: float = 3e-4
    discriminators_alone: int = 500
    reconstruction_weight: float = 1.0
    adversarial_weight: float = 0.5
    matching_weight: float = 1.0
    ema_decay: float = 0.998
    save_seconds: float = 150.0


@dataclass(frozen=True)
class CodecPlan:
    """Codec training: steps of `batch` crops of `crop_frames`, rounding to codes from step `quantize_from` on.

    start: a checkpoint folder whose codec the new one grows from, None for a fresh one. The learning rate falls from
    step `decay_from` on. depth_dropout and bypass: the shares of rows that get fewer acoustic codebooks and that reach
    the decoder without rounding.
    """

    steps: int
    quantize_from: int
    batch: int
    crop_frames: int
    learning_rate: float
    decay_from: int
    shape: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    depth_dropout: float = 0.25
    bypass: float = 0.25
    phoneme_weight: float = 0.1
    commitment_weight: float = 0.1
    size_weight: float = 0.05
    codebook_decay: float = 0.995
    ema_decay: float = 0.998
    evaluate_every: int = 200
    save_seconds: float = 150.0
    adversarial: AdversarialPlan | None = None

    @property
    def codebook_size(self) -> int:
        return int(self.shape["codebook_size"])


@dataclass(frozen=True)
class StagePlan:
    """A stage of the curriculum, up to step `until`: utterances of at most `max_frames` in the first `voices` voices.

    dialogues: share of conversations with several turns; paragraphs: with one turn of several utterances. Dialogues
    have at most `speakers` speakers and `turns` turns.
    """

    name: str
    until: int
    max_frames: int
    dialogues: float
    voices: int
    paragraphs: float = 0.0
    speakers: int = 3
    turns: int = 5


@dataclass(frozen=True)
class ModelPlan:
    """Model training: batches of about `tokens` positions; the weight of guided attention falls to 0 at `guide_until`.

    voice_weight: loss weight of the head that predicts a turn's voice. start: a checkpoint folder with whose backbone
    and text embedding the model begins. Others as in `OptimizerConfig` and `LossMask`.
    """

    stages: tuple[StagePlan, ...]
    tokens: int
    learning_rate: float
    backbone: dict[str, Any]
    depth: dict[str, Any]
    warmup_steps: int = 100
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    token_corruption: float = 0.07
    depth_frame_share: float = 0.25
    turn_start_weight: float = 1.0
    voice_weight: float = 0.0
    guided_layers: tuple[int, ...] = (1, 3)
    guide_width: float = 1.5
    guide_weight: float = 0.3
    guide_until: int = 4000
    bfloat16: bool = False
    save_seconds: float = 120.0
    start: Path | None = None

    @property
    def steps(self) -> int:
        """Last step of the last stage."""
        return self.stages[-1].until


@dataclass(frozen=True)
class SamplingPlan:
    """The voice's sampling defaults, for `generation_config.json`.

    max_frames: length limit of a turn. memory: context positions with which it speaks well (`csm_memory`), 0 for all.
    """

    temperature: float = 0.4
    top_k: int = 50
    depth_temperature: float = 0.4
    depth_top_k: int = 50
    max_frames: int = 125
    memory: int = 0


@dataclass(frozen=True)
class VoicePlan:
    """The whole recipe. folder: of intermediate files; target: checkpoint folder.

    corpus: a TeacherPlan for natural voices, a CorpusPlan for espeak-ng's. At every `preview_every`-th save,
    `preview_sentences` held-out sentences are generated.
    """

    folder: Path
    target: Path
    corpus: TeacherPlan | CorpusPlan
    codec: CodecPlan
    model: ModelPlan
    sampling: SamplingPlan = SamplingPlan()
    preview_every: int = 3
    preview_sentences: int = 24


def read_plan(path: Path) -> VoicePlan:
    """Reads a plan; raises TypeError for an unknown key."""
    raw = yaml.safe_load(path.read_text())
    model, codec, corpus = raw.pop("model"), raw.pop("codec"), raw.pop("corpus")
    stages = tuple(StagePlan(**stage) for stage in model.pop("stages"))
    adversarial, start, model_start = codec.pop("adversarial", None), codec.pop("start", None), model.pop("start", None)
    return VoicePlan(
        folder=Path(raw.pop("folder")),
        target=Path(raw.pop("target")),
        corpus=_teacher_plan(corpus) if "tools" in corpus else CorpusPlan(**corpus),
        codec=CodecPlan(
            start=Path(start) if start else None,
            adversarial=AdversarialPlan(**adversarial) if adversarial else None,
            **codec,
        ),
        model=ModelPlan(stages=stages, start=Path(model_start) if model_start else None, **model),
        sampling=SamplingPlan(**raw.pop("sampling", {})),
        **raw,
    )


def _teacher_plan(raw: dict[str, Any]) -> TeacherPlan:
    recorded = tuple(Path(each) for each in raw.pop("recorded", ()))
    return TeacherPlan(tools=Path(raw.pop("tools")), recorded=recorded, **raw)
