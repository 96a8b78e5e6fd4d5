"""Validates entries of a script with pydantic models; their errors become diagnostics with locations."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from csm_cli.script import schema
from csm_cli.script.source import Keys, Source, quoted
from csm_cli.settings import GENERATION

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_TURN_KINDS = {
    "spoken": "a turn without audio",
    "recorded": "a recorded turn",
    "excluded": "context",
    "pause": "a pause",
}
_YAML_BRACKETS = {"a list": "[", "fields": "{"}


def validate_entry(model: type[M], source: Source, data: object, path: Keys) -> M | None:
    """The data at `path` as a model; diagnostics are added to `source`.

    If the data is valid without its invalid fields, the model of the others is returned, so that what they mean is
    checked in the same run.
    """
    kind = "excluded" if model is schema.ContextEntry else ""
    return _validate(model.model_validate, source, data, path, frozenset(model.model_fields), kind)


def validate_turn(source: Source, data: object, path: Keys) -> Any:
    """One entry of `turns` as the model of its kind, like `validate_entry`."""
    return _validate(schema.TURN.validate_python, source, data, path, schema.TURN_FIELDS, "spoken")


def suggestion(name: object, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` probably is a misspelling of."""
    return next(iter(difflib.get_close_matches(str(name), sorted(names), n=1, cutoff=0.6)), None)


def _validate(
    validate: Callable[[object], T], source: Source, data: object, path: Keys, fields: frozenset[str], kind: str
) -> T | None:
    """fields: the names that `data` may have. kind: of turn; empty for what is no turn."""
    try:
        return validate(data)
    except ValidationError as invalid:
        errors: list[Any] = invalid.errors(include_url=False)
    is_short_form = bool(kind) and isinstance(data, Mapping) and _is_short_form(data)
    misspelled = {suggestion(error["loc"][-1], fields) for error in errors if error["type"] == "extra_forbidden"}
    if misspelled and is_short_form:
        misspelled |= {"speaker", "text"}
    invalid_fields: set[str | int] = set()
    for error in errors:
        inner = tuple(key for key in error["loc"] if not str(key).startswith(schema.TAG) and key != schema.KEY)
        tag = next((str(key)[1:] for key in error["loc"] if str(key).startswith(schema.TAG)), kind)
        invalid_fields.update(inner[:1])
        if error["type"] == "extra_forbidden":
            message = "unknown field" if len(inner) > 1 else _unknown_field(str(inner[-1]), tag, fields, is_short_form)
            source.add_error((*path, *inner), message, at_key=True)
        elif error["type"] != "missing":
            source.add_error((*path, *inner), _wrong_value(error, tag))
        elif inner[-1] not in misspelled:
            source.add_error((*path, *inner), _missing_field(inner[-1], tag))
    if not invalid_fields or not isinstance(data, Mapping):
        return None
    try:
        return validate({name: value for name, value in data.items() if name not in invalid_fields})
    except ValidationError:
        return None


def _is_short_form(entry: Mapping[Any, Any]) -> bool:
    """Whether a turn names speaker and text as `speaker: text`, beside other fields."""
    is_long = any(alias in entry for name in ("speaker", "text") for alias in (name, *schema.ALIASES[name]))
    return not is_long and any(name not in schema.TURN_FIELDS for name in entry)


def _unknown_field(name: str, kind: str, fields: frozenset[str], is_short_form: bool) -> str:
    for field, aliases in schema.ALIASES.items():
        if name in aliases and field in fields:
            return f'means the same as "{field}"; keep one'
    if name in GENERATION and "defaults" in fields:
        return 'unknown field; put it in "defaults"'
    if name in schema.TURN_FIELDS and kind in _TURN_KINDS:
        return f"has no effect on {_TURN_KINDS[kind]}"
    if guess := suggestion(name, fields):
        return f'unknown field; did you mean "{guess}"?'
    hint = '; a turn with other fields needs "speaker" and "text"' if is_short_form else ""
    return f"unknown field{hint}"


def _missing_field(name: str | int, kind: str) -> str:
    if kind in ("recorded", "excluded") and name == "text":
        return "missing; write the text of the recording"
    if kind == "excluded" and name == "audio":
        return "missing; context needs a recording"
    return "missing"


def _wrong_value(error: Any, kind: str) -> str:
    got = quoted(error["input"])
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        expected = "a turn (speaker: text)" if kind == "spoken" else "fields (name: value)"
        return f"expected {expected}, got {got}"
    if error["type"] == "list_type":
        return f"expected a list, got {got}"
    expected = error.get("ctx", {}).get("words") or "true or false"
    hint = f'; a text that begins with "{_YAML_BRACKETS[got]}" must be in quotes' if got in _YAML_BRACKETS else ""
    return f"expected {expected}, got {got}{hint if expected == 'text' else ''}"
