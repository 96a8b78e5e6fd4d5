"""Validates entries of a script with pydantic models; their errors become diagnostics with locations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from csm_cli.script import schema
from csm_cli.script.source import COMMA_ENDS_TEXT, Keys, Source, quoted
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


def _validate(
    validate: Callable[[object], T], source: Source, data: object, path: Keys, fields: frozenset[str], kind: str
) -> T | None:
    """fields: the names that `data` may have. kind: of turn; empty for what is no turn."""
    try:
        return validate(data)
    except ValidationError as invalid:
        errors: list[Any] = invalid.errors(include_url=False)
    is_short_form = bool(kind) and isinstance(data, Mapping) and _is_short_form(data)
    unknown = [str(error["loc"][-1]) for error in errors if error["type"] == "extra_forbidden"]
    guesses = {name: source.suggestion(name, fields) for name in unknown}
    misspelled = set(guesses.values())
    if misspelled and is_short_form:
        misspelled |= {"speaker", "text"}
    invalid_fields: set[str | int] = set()
    for error in errors:
        inner = _inner_path(error)
        tag = next((str(key)[1:] for key in error["loc"] if key in schema.TAGS), kind)
        invalid_fields.update(inner[:1])
        if error["type"] == "extra_forbidden":
            name = str(inner[-1])
            guess = guesses.get(name)
            message = "unknown field" if len(inner) > 1 else _unknown_field(name, tag, fields, is_short_form, guess)
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


def _inner_path(error: Any) -> Keys:
    """The path of an error in the data: without members of unions, and without pydantic's mark of an invalid key."""
    inner: Keys = tuple(key for key in error["loc"] if key not in schema.TAGS)
    if error["type"] == "extra_forbidden":  # its last step is a name that somebody wrote, whatever it looks like
        return inner or error["loc"][-1:]
    return inner[:-1] if len(inner) > 1 and inner[-1] == schema.KEY else inner


def _unknown_field(name: str, kind: str, fields: frozenset[str], is_short_form: bool, guess: str | None) -> str:
    for field, aliases in schema.ALIASES.items():
        if name in aliases and field in fields:
            return f'means the same as "{field}"; keep one'
    if name in GENERATION and "defaults" in fields:
        return 'unknown field; put it in "defaults"'
    if name in schema.TURN_FIELDS and kind in _TURN_KINDS:
        return f"has no effect on {_TURN_KINDS[kind]}"
    if guess:
        return f'unknown field; did you mean "{guess}"?'
    if " " in name:
        return f"unknown field; {COMMA_ENDS_TEXT}"
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
