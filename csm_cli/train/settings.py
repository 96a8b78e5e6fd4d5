"""Settings of `csm train`: one strict YAML file; every diagnostic has its line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from csm_cli.errors import ScriptInvalid, SettingsInvalid
from csm_cli.script.files import AudioLookup, read_text
from csm_cli.script.parsers import parse_yaml
from csm_cli.script.schema import TextField, parse_bool
from csm_cli.script.source import INVALID, Source
from csm_cli.script.validate import validate_entry
from csm_cli.settings import setting
from csm_cli.settings.model import expecting

_Path = Annotated[str, Field(min_length=1), expecting("a path")]
_Count = Annotated[int, Field(ge=1, le=10**12), expecting("a whole number >= 1")]
_Steps = Annotated[int, Field(ge=0, le=10**9), expecting("a number of steps, 0 for never")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), expecting("a number > 0")]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), expecting("a number >= 0")]
_Fraction = Annotated[float, Field(ge=0, le=1), expecting("a number from 0 to 1")]
_BelowOne = Annotated[float, Field(ge=0, lt=1), expecting("a number from 0 to below 1")]
_Bool = Annotated[bool, BeforeValidator(parse_bool), Field(strict=True)]
_LORA_TARGETS = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("inputs_embeds_projector", "lm_head"),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(_Strict):
    """Train a LoRA adapter; the base weights stay frozen.

    target_modules: last parts of the names of the linear layers that are adapted.
    """

    rank: _Count = 16
    alpha: _Positive = 32.0
    dropout: _BelowOne = 0.0
    target_modules: list[TextField] = Field(default=_LORA_TARGETS, min_length=1)


class FromScratchSettings(_Strict):
    """Train from random weights. backbone, depth: config.json keys that override the base model's sizes."""

    backbone: dict[str, _Count] = {}
    depth: dict[str, _Count] = {}


class TrainSettings(_Strict):
    """Settings of one training run; configs/finetune/ has examples.

    data: folder written by `csm data prepare`. output: folder of the run. model: base model; the bundled voice if
    unset. batch_tokens: positions per micro-batch and process; an optimizer step takes `gradient_accumulation_steps`
    micro-batches. ema_decay: of the averaged weights, which are what is evaluated and saved; 0 turns averaging off.
    depth_frame_share, token_corruption, turn_start_weight: see `LossMask`. sample_texts: generated every
    `sample_every` steps, tagged [n] or by speaker 0. Steps of 0 mean never. peer_timeout: seconds that a process waits
    for the others, which must be longer than saving and generating samples take.
    """

    data: _Path
    output: _Path
    model: TextField | None = None
    revision: TextField | None = None
    lora: LoraSettings | None = None
    from_scratch: FromScratchSettings | None = None
    steps: _Count
    batch_tokens: _Count = 2048
    gradient_accumulation_steps: _Count = 1
    learning_rate: _Positive = 1e-4
    warmup_steps: _Steps = 50
    weight_decay: _NonNegative = 0.0
    max_grad_norm: _Positive = 1.0
    ema_decay: _BelowOne = 0.99
    depth_frame_share: _Fraction = 1 / 16
    depth_loss_weight: _NonNegative = 1.0
    turn_start_weight: _Positive = 1.0
    token_corruption: _BelowOne = 0.0
    optimizer: Annotated[Literal["adamw", "adamw8bit"], expecting("adamw or adamw8bit")] = "adamw"
    precision: Annotated[Literal["float32", "bfloat16"], expecting("float32 or bfloat16")] = "float32"
    gradient_checkpointing: _Bool = False
    seed: Annotated[int, setting("seed")] = 0
    evaluate_every: _Steps = 200
    save_every: _Steps = 200
    sample_every: _Steps = 0
    sample_texts: list[TextField] = []
    tensorboard: _Bool = False
    peer_timeout: _Positive = 600.0

    @property
    def output_folder(self) -> Path:
        return Path(self.output).expanduser()

    @property
    def resume_key(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the run it continues."""
        free = {"output", "evaluate_every", "save_every", "sample_every", "sample_texts", "tensorboard"}
        return self.model_dump(exclude=free | {"gradient_checkpointing", "peer_timeout"})


# Names of earlier versions, for the hint in a diagnostic.
_FORMER_NAMES = {
    "scratch": "from_scratch",
    "accumulate": "gradient_accumulation_steps",
    "warm_up": "warmup_steps",
    "clip": "max_grad_norm",
    "average": "ema_decay",
    "depth_share": "depth_frame_share",
    "depth_weight": "depth_loss_weight",
    "start_weight": "turn_start_weight",
    "corrupt": "token_corruption",
    "checkpointing": "gradient_checkpointing",
    "samples": "sample_texts",
    "targets": "target_modules",
}
_EXPECTED = "settings (name: value)"
_SECTIONS: dict[str, type[_Strict]] = {"lora": LoraSettings, "from_scratch": FromScratchSettings}


def read_train_settings(path: Path) -> TrainSettings:
    """Settings from a YAML file; relative paths in it are relative to the working directory.

    Raises:
        SettingsInvalid: all diagnostics, each with its place.
    """
    try:
        source = Source(str(path), AudioLookup(path.parent))
        source.data = parse_yaml(read_text(path), source, _EXPECTED)
    except ScriptInvalid as problem:
        raise SettingsInvalid(problem.diagnostics) from problem
    settings = None if source.data is INVALID else _validate(source)
    if source.diagnostics or settings is None:
        raise SettingsInvalid(source.diagnostics)
    return settings


def _validate(source: Source) -> TrainSettings | None:
    """Validates each section by itself, so that hints name the section's own fields."""
    if not isinstance(source.data, dict):
        source.add_error((), f"expected {_EXPECTED}")
        return None
    fields = _without_former_names(source, source.data, ())
    for name, kind in _SECTIONS.items():
        if isinstance(fields.get(name), dict):
            section = validate_entry(kind, source, _without_former_names(source, fields[name], (name,)), (name,))
            fields[name] = section.model_dump() if section is not None else {}
    settings = validate_entry(TrainSettings, source, fields, ())
    if settings is not None and settings.lora and settings.from_scratch:
        problem = "a LoRA adapter cannot be trained on random weights; keep lora or from_scratch"
        source.add_error(("from_scratch",), problem, at_key=True)
    return settings


def _without_former_names(source: Source, fields: dict[Any, Any], path: tuple[str, ...]) -> dict[Any, Any]:
    """`fields` without settings that have been renamed; each becomes a diagnostic with the new name."""
    former = [name for name in fields if name in _FORMER_NAMES]
    for name in former:
        source.add_error((*path, name), f'unknown field; did you mean "{_FORMER_NAMES[name]}"?', at_key=True)
    return {name: value for name, value in fields.items() if name not in former}
