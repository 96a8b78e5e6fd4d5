"""What the recipe is told: one YAML file under `configs/voice/` as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class CorpusPlan:
    """Hours of speech, and the share of utterances in the two fixed voices."""

    hours: float
    fixed_share: float = 0.5
    seed: int = 1


@dataclass(frozen=True)
class CodecPlan:
    """Codec training: steps of `batch` crops of `crop_frames`.

    Quantization starts at step `quantize_from`; from `freeze_from` on codes stay as they are and the decoder learns.
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
    """A part of the curriculum, until a step: takes of at most `max_frames` in the first `voices` voices.

    dialogues: the share of conversations with more than one turn; paragraphs: of those with one turn of several takes.
    Dialogues have at most `speakers` speakers and `turns` turns.
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
    """Model training: batches of about `tokens` positions; guided attention fades out until step `guide_until`.

    voice_weight: what naming a turn's voice before it begins counts.
    """

    stages: tuple[StagePlan, ...]
    tokens: int
    learning_rate: float
    backbone: dict[str, Any]
    depth: dict[str, Any]
    warm_up: int = 100
    weight_decay: float = 0.05
    average_decay: float = 0.999
    corrupt: float = 0.07
    depth_share: float = 0.25
    start_weight: float = 1.0
    voice_weight: float = 0.0
    guided_layers: tuple[int, ...] = (1, 3)
    guide_width: float = 1.5
    guide_weight: float = 0.3
    guide_until: int = 4000
    bfloat16: bool = False
    save_seconds: float = 120.0

    @property
    def steps(self) -> int:
        """The last stage's last step."""
        return self.stages[-1].until


@dataclass(frozen=True)
class SamplingPlan:
    """The voice's default sampling, for `generation_config.json`.

    max_frames: a turn's cap. memory: positions of the window in which it speaks well, 0 for all.
    """

    temperature: float = 0.4
    top_k: int = 50
    depth_temperature: float = 0.4
    depth_top_k: int = 50
    max_frames: int = 125
    memory: int = 0


@dataclass(frozen=True)
class VoicePlan:
    """The whole recipe. folder: where it works; target: the checkpoint folder it makes.

    Every `preview_every`-th save, `preview_sentences` held-out sentences are sampled.
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
    """Read a plan; raises TypeError for a key it does not know."""
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
