"""The values that fields of a script take, each with the words a diagnostic uses for what was expected."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from csm_cli.settings.model import expecting


def _digits(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _an_hour(seconds: float) -> float:
    if seconds > 3600:
        raise PydanticCustomError("expected", "expected {words}", {"words": "at most 3600 seconds"})
    return seconds


def parse_bool(value: object) -> object:
    """YAML's words for true and false, which arrive as text."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


_NAME_SCHEMA = WithJsonSchema({"type": ["string", "integer"], "minLength": 1})
_Label = Annotated[str, Field(min_length=1), BeforeValidator(_digits), _NAME_SCHEMA]
_ID = r"^[^/\\]{1,150}$"
_FINITE = Field(allow_inf_nan=False)

TextField = Annotated[str, expecting("text")]
WordField = Annotated[
    str, Field(pattern=r"\S"), expecting("a word"), WithJsonSchema({"type": "string", "pattern": r"\S"})
]
TitleField = Annotated[str, BeforeValidator(_digits), expecting("text")]
SpeakerName = Annotated[_Label, expecting("the name or number of a speaker")]
ItemId = Annotated[
    _Label,
    Field(pattern=_ID),
    expecting("an id without / and \\, of at most 150 characters"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": _ID}),
]
FilePath = Annotated[str, Field(min_length=1), expecting("the path of a file")]
TimeField = Annotated[float, Field(ge=0), _FINITE, expecting("seconds >= 0")]
PauseSeconds = Annotated[float, Field(ge=0), _FINITE, expecting("seconds >= 0"), AfterValidator(_an_hour)]
OffsetSeconds = Annotated[float, Field(ge=-3600, le=3600), _FINITE, expecting("seconds from -3600 to 3600")]
GainDb = Annotated[float, Field(ge=-60, le=60), _FINITE, expecting("decibels from -60 to 60")]
LoudnessLufs = Annotated[float, Field(ge=-70, le=-5), _FINITE, expecting("loudness in LUFS from -70 to -5")]
SpeakerNumber = Annotated[int, Field(ge=0, le=999), expecting("a whole number from 0 to 999")]
FormatVersion = Annotated[
    Literal["1"],
    BeforeValidator(_digits),
    expecting("1, the version of the format"),
    WithJsonSchema({"enum": [1, "1"]}),
]
IncludeTrue = Annotated[Literal[True], BeforeValidator(parse_bool)]  # what says false is another kind of turn
IncludeFalse = Annotated[Literal[False], BeforeValidator(parse_bool)]
