"""Settings of the recipe: one YAML file under `configs/voice/` as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class CorpusPlan:
    """Hours of speech; fixed_share: share of utterances in the two voices of speakers 0 and 1."""

    hours: float
    fixed_share: float = 0.5
    seed: int = 1


@dataclass(frozen=True)
class CodecPlan:
    """Codec training: `steps` steps of `batch` crops of `crop_frames` frames.

    Quantization starts at step `quantize_from`; from `freeze_from` on only the decoder is trained.
    """

    steps: int
    quantize_from: int
    freeze_from: int
    batch: int
    crop_frames: int
    learning_rate: float
    shape: dict[str, Any] = field(default_factory=dict)


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

    voice_weight: loss weight of the head that predicts a turn's voice. Others as in `OptimizerConfig` and `LossMask`.
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

    At every `preview_every`-th save, `preview_sentences` held-out sentences are generated.
    """

    folder: Path
    target: Path
    corpus: CorpusPlan
    codec: CodecPlan
    model: ModelPlan
    sampling: SamplingPlan = SamplingPlan()
    preview_every: int = 3
    preview_sentences: int = 24


def read_plan(path: Path) -> VoicePlan:
    """Reads a plan; raises TypeError for an unknown key."""
    raw = yaml.safe_load(path.read_text())
    model = raw.pop("model")
    stages = tuple(StagePlan(**stage) for stage in model.pop("stages"))
    return VoicePlan(
        folder=Path(raw.pop("folder")),
        target=Path(raw.pop("target")),
        corpus=CorpusPlan(**raw.pop("corpus")),
        codec=CodecPlan(**raw.pop("codec")),
        model=ModelPlan(stages=stages, **model),
        sampling=SamplingPlan(**raw.pop("sampling", {})),
        **raw,
    )
