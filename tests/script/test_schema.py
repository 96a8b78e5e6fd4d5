"""The exported JSON Schema agrees with the reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from csm_cli.script import json_schema

SAMPLES = Path(__file__).parents[2] / "samples"
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the export uses."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(
        isinstance(value, TYPES[kind]) and not (kind != "boolean" and value is True) for kind in kinds
    ):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if not all(fits(value, each, root) for each in schema.get("allOf", [])):
        return False
    if "anyOf" in schema and not any(fits(value, each, root) for each in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(fits(value, each, root) for each in schema["oneOf"]) != 1:
        return False
    if "not" in schema and fits(value, schema["not"], root):
        return False
    return fits_inside(value, schema, root)


def patterned(name: str, schema: dict[str, Any], other: Any) -> Any:
    """The schema of a property that has none by its name."""
    patterns = schema.get("patternProperties", {})
    return next((each for pattern, each in patterns.items() if re.search(pattern, name)), other)


def fits_inside(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        other = schema.get("additionalProperties", True)
        return (
            schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value))
            and all(name in value for name in schema.get("required", []))
            and all(fits(name, schema.get("propertyNames", True), root) for name in value)
            and all(
                fits(each, properties.get(name, patterned(name, schema, other)), root) for name, each in value.items()
            )
        )
    if isinstance(value, list):
        return all(fits(each, schema.get("items", True), root) for each in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, int | float):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def script_fits(data: Any) -> bool:
    return fits(data, json_schema("script"), json_schema("script"))


def line_fits(data: Any) -> bool:
    return fits(data, json_schema("batch"), json_schema("batch"))


def test_the_samples_fit() -> None:
    assert script_fits(yaml.safe_load((SAMPLES / "dialogue.yaml").read_text()))
    assert script_fits(json.loads((SAMPLES / "chat.json").read_text()))
    assert all(line_fits(json.loads(line)) for line in (SAMPLES / "batch.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "turn",
    [
        {"ana": "Hi."},
        {"pause": 1.5},
        {"speaker": "ana", "text": "Hi.", "max_duration": "auto"},
        {"role": 0, "input": "Hi.", "custom_id": "a", "offset": -0.2},
        {"speaker": "ana", "text": "Hi.", "audio": "a.wav", "start": 1},
        {"speaker": "ana", "text": "Hi.", "file_name": "a.wav", "include": False},
    ],
)
def test_every_form_of_a_turn_fits(turn: dict[str, Any]) -> None:
    assert script_fits({"turns": [turn]})


@pytest.mark.parametrize(
    "turn",
    [
        {"text": "Hi."},
        {"speaker": "ana", "text": "Hi.", "colour": "red"},
        {"speaker": "ana", "text": "Hi.", "seed": -1},
        {"pause": -1},
        {"pause": 1, "text": "Hi."},
        {"speaker": "ana", "audio": "a.wav"},
        {"ana": "Hi.", "ben": "Hi."},
        "Hi.",
    ],
)
def test_invalid_turns_do_not_fit(turn: Any) -> None:
    assert not script_fits({"turns": [turn]})


def test_a_lexicon_fits_if_it_maps_words_to_words() -> None:
    turns = [{"0": "Hi."}]
    assert script_fits({"lexicon": {"Nguyen": "win"}, "turns": turns})
    assert not script_fits({"lexicon": {"Nguyen": ["win"]}, "turns": turns})
    assert not script_fits({"lexicon": ["Nguyen"], "turns": turns})
    assert line_fits({"lexicon": {"Nguyen": "win"}})


def test_batch_lines_fit() -> None:
    context = [{"speaker": 1, "audio": "b1.wav", "text": "Hi!"}]
    assert line_fits({"id": "p-001", "speaker": 0, "text": "Hello.", "context": context, "seed": 7})
    assert line_fits({"custom_id": 7, "turns": [{"0": "Hi."}]})
    assert line_fits({"csm": 1, "speakers": {"ana": {"id": 0}}})
    assert line_fits({"speakers": {"ana": {}, "ben": {"gain": -1}}})
    assert not line_fits({"speakers": {"ana": {"id": 1000}}})
    assert not line_fits({"speakers": {"ana": {"custom_id": 1}}})
    assert not line_fits({"id": "p-001", "speaker": 0})
    assert not line_fits({"id": "a/b", "text": "Hello."})
