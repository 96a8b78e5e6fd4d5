"""Pydantic's findings in plain words, at their places."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from csm_cli.script import schema
from csm_cli.script.source import Keys, Source, quoted

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_KINDS = {"spoken": "a turn without audio", "recorded": "a recorded turn", "left": "context", "pause": "a pause"}
_QUOTED = {"a list": "[", "fields": "{"}


def validate_entry(kind: type[M], source: Source, data: object, path: Keys) -> M | None:
    """`data`, which stands at `path`, as a model.

    Diagnostics are noted in `source`. What is left without the fields complained about is still returned where it is
    valid, so that its meaning can be checked in the same run.
    """
    label = "left" if kind is schema.ContextEntry else ""
    return _read(kind.model_validate, source, _Part(data, path, frozenset(kind.model_fields), label))


def validate_turn(source: Source, data: object, path: Keys) -> Any:
    """One entry of `turns` as its model, in the manner of `read`."""
    return _read(schema.TURN.validate_python, source, _Part(data, path, schema.TURN_FIELDS, "spoken"))


@dataclass(frozen=True)
class _Part:
    """Data to validate, where it stands, the fields it may have, and the kind of turn it is."""

    data: object
    path: Keys
    names: frozenset[str]
    kind: str

    @property
    def is_short(self) -> bool:
        """It says who speaks what as a short turn does, where that form does not do."""
        given = self.data if isinstance(self.data, Mapping) else {}
        long = any(alias in given for name in ("speaker", "text") for alias in (name, *schema.ALIASES[name]))
        return bool(self.kind) and not long and any(key not in schema.TURN_FIELDS for key in given)


@dataclass(frozen=True)
class _Finding:
    """loc: keys below the part. kind: the kind of turn, where there are kinds. words: what was expected."""

    type: str
    loc: Keys
    kind: str
    input: object
    words: str


def _read(validate: Callable[[object], T], source: Source, part: _Part) -> T | None:
    try:
        return validate(part.data)
    except ValidationError as error:
        findings = [_finding(raw, part) for raw in error.errors(include_url=False)]
    _complain(findings, source, part)
    wrong = {finding.loc[0] for finding in findings if finding.loc}
    if not wrong or not isinstance(part.data, Mapping):
        return None
    try:
        return validate({key: value for key, value in part.data.items() if key not in wrong})
    except ValidationError:
        return None


def _finding(raw: Any, part: _Part) -> _Finding:
    loc = tuple(key for key in raw["loc"] if not str(key).startswith(schema.TAG) and key != schema.KEY)
    kind = next((str(key)[1:] for key in raw["loc"] if str(key).startswith(schema.TAG)), part.kind)
    return _Finding(raw["type"], loc, kind, raw["input"], raw.get("ctx", {}).get("words", ""))


def _complain(findings: list[_Finding], source: Source, part: _Part) -> None:
    unknown = [finding for finding in findings if finding.type == "extra_forbidden"]
    meant = {suggestion(finding.loc[-1], part.names) for finding in unknown}
    meant |= {"speaker", "text"} if part.is_short and unknown else set()
    for finding in findings:
        path = (*part.path, *finding.loc)
        if finding.type == "extra_forbidden":
            source.add_error(path, _unknown(finding, part), at_key=True)
        elif finding.type == "missing":
            if finding.loc[-1] not in meant:
                source.add_error(path, _missing(finding))
        else:
            source.add_error(path, _wrong(finding))


def _unknown(finding: _Finding, part: _Part) -> str:
    name = str(finding.loc[-1])
    if len(finding.loc) > 1:
        return "unknown field"
    same = next((field for field, others in schema.ALIASES.items() if name in others and field in part.names), None)
    if same is not None:
        return f'means the same as "{same}"; keep one'
    if name in schema.OPTIONS and "defaults" in part.names:
        return 'unknown field; put it in "defaults"'
    if name in schema.TURN_FIELDS and finding.kind in _KINDS:
        return f"has no effect on {_KINDS[finding.kind]}"
    guess = suggestion(name, part.names)
    if guess is not None:
        return f'unknown field; did you mean "{guess}"?'
    return "unknown field; with other fields, write speaker and text" if part.is_short else "unknown field"


def _missing(finding: _Finding) -> str:
    if finding.kind in ("recorded", "left") and finding.loc[-1] == "text":
        return "missing; write the words that are said in the audio"
    if finding.kind == "left" and finding.loc[-1] == "audio":
        return "missing; context is recorded speech"
    return "missing"


def _wrong(finding: _Finding) -> str:
    got = quoted(finding.input)
    if finding.type in ("model_type", "model_attributes_type", "dict_type"):
        expected = "a turn (speaker: text)" if finding.kind == "spoken" else "fields (name: value)"
        return f"expected {expected}, got {got}"
    if finding.type == "list_type":
        return f"expected a list, got {got}"
    hint = f'; a text that begins with "{_QUOTED[got]}" has to stand in quotes' if got in _QUOTED else ""
    return f"expected {finding.words or 'true or false'}, got {got}{hint if finding.words == 'text' else ''}"


def suggestion(name: object, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be."""
    return next(iter(difflib.get_close_matches(str(name), sorted(names), n=1, cutoff=0.6)), None)
