"""The schema of scripts and batch lines: fields and their values. `resolve` checks what they mean together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    SkipValidation,
    Tag,
    TypeAdapter,
    WithJsonSchema,
)

from csm_cli import types
from csm_cli.settings import GENERATION
from csm_cli.settings.model import GenerationFields, expecting

ALIASES = {
    "id": ("custom_id",),
    "text": ("input",),
    "speaker": ("role", "source", "speaker_id"),
    "audio": ("audio_filepath", "file_name"),
}
TAG = "\0"  # first character of the names of union members, which no field of a script can have
_MEMBERS = ("short", "spoken", "recorded", "excluded", "pause", "text", "audio", "string", "items")
TAGS = frozenset(TAG + name for name in _MEMBERS)
KEY = "[key]"  # pydantic's last step to an invalid key


def parse_bool(value: object) -> object:
    """YAML's words for true and false, which arrive as text; every other value as it is."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _int_to_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _with_aliases(name: str) -> Any:
    return Field(validation_alias=AliasChoices(name, *ALIASES[name]))


_FINITE = Field(allow_inf_nan=False)
_ID = r"^[^/\\]{1,150}$"
_NAME_SCHEMA = WithJsonSchema({"type": ["string", "integer"], "minLength": 1})
_Label = Annotated[str, Field(min_length=1), BeforeValidator(_int_to_text), _NAME_SCHEMA]

TextField = Annotated[str, expecting("text")]
WordField = Annotated[
    str, Field(pattern=r"\S"), expecting("a word"), WithJsonSchema({"type": "string", "pattern": r"\S"})
]
SpeakerName = Annotated[_Label, expecting("the name or number of a speaker")]
ItemId = Annotated[
    _Label,
    Field(pattern=_ID),
    expecting("an id without / and \\, of at most 150 characters"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": _ID}),
]
FilePath = Annotated[str, Field(min_length=1), expecting("the path of a file")]
TimeField = Annotated[float, Field(ge=0), _FINITE, expecting("seconds >= 0")]
PauseSeconds = Annotated[float, Field(ge=0, le=3600), _FINITE, expecting("seconds from 0 to 3600")]
OffsetSeconds = Annotated[float, Field(ge=-3600, le=3600), _FINITE, expecting("seconds from -3600 to 3600")]
GainDb = Annotated[float, Field(ge=-60, le=60), _FINITE, expecting("decibels from -60 to 60")]
LoudnessLufs = Annotated[float, Field(ge=-70, le=-5), _FINITE, expecting("loudness in LUFS from -70 to -5")]
Speed = Annotated[float, Field(ge=0.8, le=1.25), _FINITE, expecting("a speed from 0.8 to 1.25")]
SpeakerNumber = Annotated[int, Field(ge=0, le=999), expecting("a whole number from 0 to 999")]
FormatVersion = Annotated[
    Literal["1"],
    BeforeValidator(_int_to_text),
    expecting("1, the version of the format"),
    WithJsonSchema({"enum": [1, "1"]}),
]
IncludeTrue = Annotated[Literal[True], BeforeValidator(parse_bool)]  # an entry with false is of another kind
IncludeFalse = Annotated[Literal[False], BeforeValidator(parse_bool)]
AliasedSpeaker = Annotated[SpeakerName, _with_aliases("speaker")]
AliasedText = Annotated[TextField, _with_aliases("text")]
AliasedId = Annotated[ItemId | None, _with_aliases("id")]


def _add_aliases(schema: dict[str, Any]) -> None:
    """Lets editors accept the aliases of a field."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    for name, others in ALIASES.items():
        if name not in properties:
            continue
        properties.update(dict.fromkeys(others, properties[name]))
        if name in required:
            required.remove(name)
            schema.setdefault("allOf", []).append({"anyOf": [{"required": [each]} for each in (name, *others)]})


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_add_aliases)


class _Options(_Fields, GenerationFields):
    """Generation options, with the bounds that flags have."""

    def options(self) -> types.GenerationOptions:
        return types.GenerationOptions(**{name: getattr(self, name) for name in GENERATION})


class ScriptDefaults(_Options):
    """Values for turns that set none. gap: seconds of silence between turns. loudness: of the track, in LUFS."""

    gap: PauseSeconds | None = None
    loudness: LoudnessLufs | None = None


class Lexicon(RootModel[dict[WordField, WordField]]):
    """Words and how each is spelled for the model; subtitles and reports show the words as written."""


class SpeakerFields(_Options):
    """id: the number the model reads; assigned if absent. voice: a saved voice, or audio and its text in `voice_text`
    or a .txt file beside it.

    seed: a turn's seed is this plus the turn's index, so that no two turns are alike.
    """

    model_config = ConfigDict(json_schema_extra={})  # the id of a speaker has no alias

    id: SpeakerNumber | None = None
    voice: FilePath | None = None
    voice_text: TextField | None = None
    gain: GainDb | None = None
    speed: Speed | None = None


class ContextEntry(_Fields):
    """Recorded speech that is part of the prompt and not of the output."""

    speaker: AliasedSpeaker
    audio: Annotated[FilePath, _with_aliases("audio")]
    text: AliasedText
    start: TimeField | None = None
    end: TimeField | None = None
    id: AliasedId = None


class ExcludedEntry(ContextEntry):
    """Context written among the turns."""

    include: IncludeFalse


class RecordedEntry(ContextEntry):
    """A recorded turn, copied to the output."""

    offset: OffsetSeconds | None = None
    gain: GainDb | None = None
    include: IncludeTrue | None = None


class SpokenEntry(_Options):
    """A turn to generate. offset: seconds after the end of the previous turn, instead of the default gap."""

    speaker: AliasedSpeaker
    text: AliasedText
    id: AliasedId = None
    offset: OffsetSeconds | None = None
    gain: GainDb | None = None
    speed: Speed | None = None
    include: IncludeTrue | None = None


class PauseEntry(_Fields):
    pause: PauseSeconds


TURN_FIELDS = frozenset(
    name
    for model in (ExcludedEntry, RecordedEntry, SpokenEntry, PauseEntry)
    for field in model.model_fields
    for name in (field, *ALIASES.get(field, ()))
)


def _require_one_pair(schema: dict[str, Any]) -> None:
    schema.update(minProperties=1, maxProperties=1, propertyNames={"not": {"enum": sorted(TURN_FIELDS)}})


class ShortEntry(RootModel[dict[str, TextField]]):
    """A turn to generate, as `speaker: text`."""

    model_config = ConfigDict(json_schema_extra=_require_one_pair)


def _turn_kind(entry: object) -> str:
    if not isinstance(entry, dict):
        return TAG + "spoken"
    if "pause" in entry:
        return TAG + "pause"
    if len(entry) == 1 and not TURN_FIELDS.intersection(entry):
        return TAG + "short"
    if parse_bool(entry.get("include")) is False:
        return TAG + "excluded"
    return TAG + "recorded" if any(name in entry for name in ("audio", *ALIASES["audio"])) else TAG + "spoken"


TurnEntry = Annotated[
    Annotated[ShortEntry, Tag(TAG + "short")]
    | Annotated[SpokenEntry, Tag(TAG + "spoken")]
    | Annotated[RecordedEntry, Tag(TAG + "recorded")]
    | Annotated[ExcludedEntry, Tag(TAG + "excluded")]
    | Annotated[PauseEntry, Tag(TAG + "pause")],
    Discriminator(_turn_kind),
]


class TextItem(_Fields):
    type: Annotated[Literal["text"], expecting('"text" or "audio"')]
    text: TextField


class AudioItem(_Fields):
    type: Literal["audio"]
    path: Annotated[FilePath, Field(validation_alias=AliasChoices("path", "audio"))]


ContentItem = Annotated[
    Annotated[TextItem, Tag(TAG + "text")] | Annotated[AudioItem, Tag(TAG + "audio")],
    Discriminator(lambda item: TAG + ("audio" if isinstance(item, dict) and item.get("type") == "audio" else "text")),
]
Content = Annotated[
    Annotated[TextField, Tag(TAG + "string")] | Annotated[list[ContentItem], Tag(TAG + "items")],
    Discriminator(lambda content: TAG + ("items" if isinstance(content, list) else "string")),
]


class Message(_Fields):
    """A turn in the chat format of transformers."""

    role: SpeakerName
    content: Content


class _Outline(_Fields):
    """The fields of a script; their entries are validated one by one later."""

    csm: FormatVersion = "1"
    title: Annotated[str, BeforeValidator(_int_to_text), expecting("text")] | None = None
    defaults: SkipValidation[ScriptDefaults | None] = None
    lexicon: SkipValidation[Lexicon | FilePath | None] = None
    speakers: dict[str, SkipValidation[SpeakerFields]] | None = None
    context: list[SkipValidation[ContextEntry]] | None = None


class HeaderOutline(_Outline):
    """The first line of a JSONL script or manifest."""


class ScriptOutline(_Outline):
    turns: list[SkipValidation[TurnEntry]] | None = None
    messages: list[SkipValidation[Message]] | None = None


class DialogueOutline(ScriptOutline):
    """A batch line with a whole dialogue."""

    id: AliasedId = None


class ManifestLine(_Options):
    """A batch line with one text. Without a speaker, `[n]` in the text starts the turns of speaker n.

    voice: as in `SpeakerFields`.
    """

    id: AliasedId = None
    speaker: Annotated[SpeakerName | None, _with_aliases("speaker")] = None
    text: AliasedText
    voice: FilePath | None = None
    voice_text: TextField | None = None
    gain: GainDb | None = None
    speed: Speed | None = None
    context: list[SkipValidation[ContextEntry]] | None = None


def json_schema(kind: Literal["script", "batch"] = "script") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a script or of one line of a manifest, for editors."""
    roots: Any = ScriptOutline if kind == "script" else ManifestLine | DialogueOutline | HeaderOutline
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(roots).json_schema(),
        "title": "csm script" if kind == "script" else "csm batch line",
    }


TURN: TypeAdapter[Any] = TypeAdapter(TurnEntry)
