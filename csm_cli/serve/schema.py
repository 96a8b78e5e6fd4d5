"""What clients send, and the form of errors."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from csm_cli.audio.tempo import MAX_SPEED, MIN_SPEED
from csm_cli.errors import InputError
from csm_cli.script.schema import GainDb, OffsetSeconds
from csm_cli.serve.limits import MAX_CONTEXT_CLIPS, MAX_INPUT_CHARS, MAX_SPEAKERS, MAX_TITLE_CHARS
from csm_cli.settings import GENERATION
from csm_cli.settings.model import GenerationFields
from csm_cli.types import GenerationOptions

ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
SpokenText = Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARS)]
SpeakerId = Annotated[int, Field(ge=0, le=999)]
Speed = Annotated[float, Field(ge=MIN_SPEED, le=MAX_SPEED, allow_inf_nan=False)]


class VoiceRef(BaseModel):
    """A voice as an object, as OpenAI names custom voices."""

    id: str


class ContextClip(BaseModel):
    """An earlier turn that the model hears: what was said, and the sound as base64 or a data: URL."""

    model_config = ConfigDict(extra="forbid")
    text: SpokenText
    audio: str
    speaker: SpeakerId = 0


class SpokenFields(GenerationFields):
    """What every request for speech can set. Unknown fields are accepted and named in a header."""

    model_config = ConfigDict(extra="allow")
    response_format: ResponseFormat = "mp3"
    speed: Speed = 1.0
    instructions: str | None = Field(None, description="Accepted; has no effect.")
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = Field(True, description="False: send the whole file when it is finished, after retries if needed.")

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in GENERATION})

    @property
    def streamed(self) -> bool:
        """Whether audio is sent while it is made; events always are."""
        return self.stream or self.stream_format == "sse"

    @property
    def ignored(self) -> list[str]:
        """Fields without effect."""
        return (["instructions"] if self.instructions else []) + sorted(self.model_extra or {})


class VoiceFields(BaseModel):
    """Whose voice it is, and what was said before."""

    model: str = "csm"
    voice: str | VoiceRef | None = None
    speaker: SpeakerId = 0
    ref_audio: str | None = Field(None, description="A clip of the voice: base64 or a data: URL.")
    ref_text: SpokenText | None = Field(None, description="What the clip says.")
    context: Annotated[list[ContextClip], Field(default_factory=list, max_length=MAX_CONTEXT_CLIPS)]

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceRef) else self.voice


class SpeechBody(VoiceFields, SpokenFields):
    """`POST /v1/audio/speech`."""

    input: SpokenText


class SocketConfig(VoiceFields, SpokenFields):
    """`session.config` of a text stream: begins a conversation."""

    type: Literal["session.config"] = "session.config"
    response_format: ResponseFormat = "pcm"
    stream_audio: bool | None = Field(None, description="Whether a sentence has several frames; by default, with pcm.")

    @property
    def streamed(self) -> bool:
        return self.response_format == "pcm" if self.stream_audio is None else self.stream_audio


class InputText(BaseModel):
    """`input.text`: more text, cut anywhere."""

    type: Literal["input.text"]
    text: Annotated[str, Field(max_length=MAX_INPUT_CHARS)]


class InputDone(BaseModel):
    """`input.done`: the rest of the text is a sentence."""

    type: Literal["input.done"]


SocketMessage = Annotated[SocketConfig | InputText | InputDone, Field(discriminator="type")]


class SpeakerBody(BaseModel):
    """A speaker of a conversation: a name, and a saved voice or a clip of one."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    voice: str | VoiceRef | None = None
    ref_audio: str | None = None
    ref_text: SpokenText | None = None

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceRef) else self.voice


class ConversationBody(GenerationFields):
    """`POST /v1/conversations`. Generation options are defaults of its turns; `seed` is that of the first turn."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(max_length=MAX_TITLE_CHARS)] = ""
    speakers: Annotated[dict[SpeakerId, SpeakerBody], Field(default_factory=dict, max_length=MAX_SPEAKERS)]
    context: Annotated[list[ContextClip], Field(default_factory=list, max_length=MAX_CONTEXT_CLIPS)]

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in GENERATION})


class ConversationPatch(BaseModel):
    """`PATCH /v1/conversations/ID`. Of the speakers, those named are changed; null removes one without turns."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(max_length=MAX_TITLE_CHARS)] | None = None
    speakers: Annotated[dict[SpeakerId, SpeakerBody | None], Field(default_factory=dict, max_length=MAX_SPEAKERS)]


class TurnBody(SpokenFields):
    """`POST .../turns`: the next turn, which is spoken, or with `audio` was recorded."""

    input: SpokenText
    speaker: SpeakerId = 0
    gap: OffsetSeconds | None = Field(None, description="Seconds after the turn before; negative to overlap it.")
    gain: GainDb = 0.0
    position: int | None = Field(None, ge=1, description="Its number among the turns; after the last by default.")
    audio: str | None = Field(None, description="The recorded turn: base64 or a data: URL.")


class TurnPatch(BaseModel):
    """`PATCH .../turns/TURN`. With a new input or speaker, takes that were spoken are dropped."""

    model_config = ConfigDict(extra="forbid")
    input: SpokenText | None = None
    speaker: SpeakerId | None = None
    take: int | None = None
    number: int | None = Field(None, ge=1, description="Moves the turn to this place.")
    gap: OffsetSeconds | None = None
    gain: GainDb | None = None


def decode_audio(name: str, text: str) -> bytes:
    """The bytes of base64 or of a data: URL.

    Raises:
        InputError: it is neither. A path or another URL is refused: the server opens nothing that a client names.
    """
    data = text
    if text[:5].lower() == "data:":
        head, comma, data = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError(f"{name}: expected a data: URL with ;base64")
    try:
        decoded = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as problem:
        hint = "; paths and URLs are not opened" if "/" in text[:64] or ":" in text[:64] else ""
        raise InputError(f"{name}: expected audio as base64 or as a data: URL{hint}") from problem
    if not decoded:
        raise InputError(f"{name}: holds no audio")
    return decoded


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe_validation(errors: list[Any]) -> tuple[str, str | None]:
    """The message and the field of a request that is not valid."""
    first = errors[0]
    if first["type"] == "model_attributes_type" and tuple(first["loc"]) == ("body",):
        return "body: expected a JSON object, sent with the header Content-Type: application/json", None
    path = ".".join(str(each) for each in first["loc"] if each not in ("body", "query", "path"))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{path or 'body'}: {first['msg']}{more}", path or None
