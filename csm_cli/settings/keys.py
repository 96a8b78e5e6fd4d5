"""The keys that can be set, and what their values may be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from csm_cli.errors import UsageError
from csm_cli.generation.chunking import MIN_CHUNK_CHARS

Value = str | int | float | bool


@dataclass(frozen=True)
class Key:
    """read: a value from text, ValueError where it is none. schema: its JSON Schema. about: what it is for."""

    read: Callable[[str], Value]
    expected: str
    about: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string", "minLength": 1})


def parse(name: str, text: str, label: str) -> Value:
    """The value of a key as it was written.

    Raises:
        UsageError: an impossible value; names it by `label`.
    """
    key = ALL_KEYS[name]
    try:
        return key.read(text)
    except ValueError:
        raise UsageError(f"{label} takes {key.expected}, not {text!r}") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of csm.toml and config.toml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "csm.toml",
        "type": "object",
        "properties": {name: {**key.schema, "description": key.about} for name, key in ALL_KEYS.items()},
        "additionalProperties": False,
    }


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return value


def _duration(text: str) -> float:
    """Seconds; 0 for `auto`, as in `GenerationOptions`."""
    if text == "auto":
        return 0.0
    value = _number(text)
    if not 0 < value <= 3600:
        raise ValueError(text)
    return value


def _retries(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100:
        raise ValueError(text)
    return value


def _takes(text: str) -> int:
    value = _retries(text)
    if not value:
        raise ValueError(text)
    return value


def _split(text: str) -> str:
    if text not in ("auto", "off") and not (re.fullmatch(r"[0-9]{1,6}", text) and int(text) >= MIN_CHUNK_CHARS):
        raise ValueError(text)
    return text


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(text)


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def _quantize(text: str) -> str:
    if text not in ("none", "int8"):
        raise ValueError(text)
    return text


_NUMBER: dict[str, Any] = {"type": "number", "minimum": 0}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_SECONDS = {"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 3600}]}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 100}
_TRUTH: dict[str, Any] = {"type": "boolean"}
_PARTS = {"anyOf": [{"enum": ["auto", "off"]}, {"type": "integer", "minimum": MIN_CHUNK_CHARS, "maximum": 999_999}]}

GENERATION_KEYS = {
    "temperature": Key(_number, "a number >= 0", "How freely codes are drawn; 0 is greedy.", _NUMBER),
    "top_k": Key(_whole, "a whole number >= 0", "Draw from the N likeliest codes; 0 keeps all.", _WHOLE),
    "depth_temperature": Key(_number, "a number >= 0", "The depth decoder's; follows temperature.", _NUMBER),
    "depth_top_k": Key(_whole, "a whole number >= 0", "The depth decoder's; follows top_k.", _WHOLE),
    "seed": Key(_whole, "a whole number from 0 to 2**63 - 1", "Repeats a take.", _WHOLE),
    "max_duration": Key(
        _duration, "auto or seconds > 0, at most 3600", "Longest duration of a turn; auto goes by its text.", _SECONDS
    ),
}
MODEL_KEYS = {
    "model": Key(_name, "an id or a path", "Hugging Face id, directory or weights file."),
    "adapter": Key(_name, "an id or a path", "A LoRA adapter, merged into the model."),
    "revision": Key(_name, "a commit, branch or tag", "Which of a Hugging Face id."),
    "device": Key(_name, "auto, cpu, cuda, cuda:N or mps", "Where the model computes."),
    "dtype": Key(_name, "auto, float32, bfloat16 or float16", "In what it computes."),
    "quantize": Key(_quantize, "none or int8", "Layers in 8 bits, on a CPU.", {"enum": ["none", "int8"]}),
    "compile": Key(_truth, "true or false", "Frames through torch.compile.", _TRUTH),
    "retries": Key(_retries, "a whole number from 0 to 100", "More takes where one is bad.", _COUNT),
    "takes": Key(_takes, "a whole number from 1 to 100", "So many, and the best is kept.", _COUNT | {"minimum": 1}),
    "split": Key(
        _split, f"auto, off or characters from {MIN_CHUNK_CHARS} on", "Longer texts are spoken in parts.", _PARTS
    ),
    "verify": Key(_truth, "true or false", "Try again where a recognizer hears other words.", _TRUTH),
    "verify_model": Key(_name, "a size or a folder", "The recognizer: faster-whisper's model."),
    "offline": Key(_truth, "true or false", "Use what is cached only.", _TRUTH),
}
ALL_KEYS = GENERATION_KEYS | MODEL_KEYS
