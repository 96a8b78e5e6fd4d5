"""What `csm train` is told: one YAML file, strict, every diagnostic with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from csm_cli.errors import ScriptInvalid, SettingsInvalid
from csm_cli.script.fields import Seed, TextField, expecting, parse_bool
from csm_cli.script.files import AudioLookup, read_text
from csm_cli.script.parsers import parse_yaml
from csm_cli.script.source import INVALID, Source
from csm_cli.script.validate import validate_entry

_Place = Annotated[str, Field(min_length=1), expecting("a path")]
_Count = Annotated[int, Field(ge=1, le=10**12), expecting("a whole number >= 1")]
_Every = Annotated[int, Field(ge=0, le=10**9), expecting("a number of steps, 0 for never")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), expecting("a number > 0")]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), expecting("a number >= 0")]
_Share = Annotated[float, Field(ge=0, le=1), expecting("a number from 0 to 1")]
_Part = Annotated[float, Field(ge=0, lt=1), expecting("a number from 0 to below 1")]
_Switch = Annotated[bool, BeforeValidator(parse_bool), Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(_Strict):
    """An adapter is learned, the model stays. targets: the ends of the names of the linears that are adapted."""

    rank: _Count = 16
    alpha: _Positive = 32.0
    dropout: _Part = 0.0
    targets: list[TextField] = Field(
        default=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
            "inputs_embeds_projector",
            "lm_head",
        ],
        min_length=1,
    )


class ScratchSettings(_Strict):
    """The model's sizes with random weights. backbone, depth: sizes that differ, by their names in config.json."""

    backbone: dict[str, _Count] = {}
    depth: dict[str, _Count] = {}


class TrainSettings(_Strict):
    """A run of training; see configs/finetune/ for what to begin with.

    data: a folder that `csm data prepare` has made; output: the folder of the run. model: what is trained, the bundled
    voice where none is named. batch_tokens: positions of a micro-batch in one process; a step has `accumulate` of them.
    average: decay of the averaged weights, which are what is evaluated and kept. depth_share, corrupt and start_weight
    are as in `LossMask`. samples: sentences spoken every `sample_every` steps, tagged [n] or by speaker 0.
    """

    data: _Place
    output: _Place
    model: TextField | None = None
    revision: TextField | None = None
    lora: LoraSettings | None = None
    scratch: ScratchSettings | None = None
    steps: _Count
    batch_tokens: _Count = 2048
    accumulate: _Count = 1
    learning_rate: _Positive = 1e-4
    warm_up: _Every = 50
    weight_decay: _NotNegative = 0.0
    clip: _Positive = 1.0
    average: _Part = 0.99
    depth_share: _Share = 1 / 16
    depth_weight: _NotNegative = 1.0
    start_weight: _Positive = 1.0
    corrupt: _Part = 0.0
    optimizer: Annotated[Literal["adamw", "adamw8bit"], expecting("adamw or adamw8bit")] = "adamw"
    precision: Annotated[Literal["float32", "bfloat16"], expecting("float32 or bfloat16")] = "float32"
    checkpointing: _Switch = False
    seed: Seed = 0
    evaluate_every: _Every = 200
    save_every: _Every = 200
    sample_every: _Every = 0
    samples: list[TextField] = []
    tensorboard: _Switch = False

    @property
    def folder(self) -> Path:
        return Path(self.output).expanduser()

    @property
    def what_is_learned(self) -> dict[str, Any]:
        """All that a run cannot change on its way."""
        free = {"output", "evaluate_every", "save_every", "sample_every", "samples", "tensorboard", "checkpointing"}
        return {name: value for name, value in self.model_dump().items() if name not in free}


_EXPECTED = "settings (name: value)"
_NESTED: dict[str, type[_Strict]] = {"lora": LoraSettings, "scratch": ScratchSettings}


def read_train_settings(path: Path) -> TrainSettings:
    """The settings in a YAML file; paths in it are as seen from where the command runs.

    Raises:
        SettingsInvalid: every diagnostic, each with its place.
    """
    try:
        source = Source(str(path), AudioLookup(path.parent))
        source.data = parse_yaml(read_text(path), source, _EXPECTED)
    except ScriptInvalid as problem:
        raise SettingsInvalid(problem.diagnostics) from problem
    settings = None
    if source.data is not INVALID:
        settings = _settings(source)
    if source.diagnostics or settings is None:
        raise SettingsInvalid(source.diagnostics)
    return settings


def _settings(source: Source) -> TrainSettings | None:
    """Sections are read by themselves, so that diagnostics know their fields."""
    if not isinstance(source.data, dict):
        source.add_error((), f"expected {_EXPECTED}")
        return None
    given = dict(source.data)
    for name, kind in _NESTED.items():
        if isinstance(given.get(name), dict):
            section: BaseModel | None = validate_entry(kind, source, given[name], (name,))
            given[name] = section.model_dump() if section is not None else {}
    settings = validate_entry(TrainSettings, source, given, ())
    if settings is not None and settings.lora and settings.scratch:
        source.add_error(("scratch",), "random weights cannot be adapted; keep lora or scratch", at_key=True)
    return settings
