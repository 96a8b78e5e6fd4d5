"""`/v1/conversations`: turns that are spoken one after another, each with all that was said before in its context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import torch
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from csm_cli.audio.formats import FORMATS
from csm_cli.errors import InputError
from csm_cli.generation.events import Utterance, audio_tags
from csm_cli.script.schema import TURN_FIELDS
from csm_cli.script.source import text_problem
from csm_cli.serve.context import ServerContext
from csm_cli.serve.conversation_export import ConversationExport, ExportFormat
from csm_cli.serve.conversations import (
    DEFAULT_GAP,
    ConversationStore,
    HeldClip,
    HeldConversation,
    HeldSpeaker,
    HeldTurn,
    TurnSpeech,
)
from csm_cli.serve.limits import MAX_NAME_CHARS
from csm_cli.serve.problems import Conflict
from csm_cli.serve.schema import (
    ContextClip,
    ConversationBody,
    ConversationPatch,
    ResponseFormat,
    SpeakerBody,
    SpokenFields,
    TurnBody,
    TurnPatch,
    decode_audio,
    describe_validation,
)
from csm_cli.serve.spoken_response import SpokenResponse, whole_file
from csm_cli.serve.voices import check_text, resolve_voice
from csm_cli.types import Conversation, Turn

Body = TypeVar("Body", bound=BaseModel)
_TURN_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": TurnBody.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["input", "audio"],
                    "properties": {
                        "input": {"type": "string"},
                        "audio": {"type": "string", "format": "binary"},
                        "speaker": {"type": "integer"},
                        "gap": {"type": "number"},
                        "gain": {"type": "number"},
                        "position": {"type": "integer"},
                    },
                }
            },
        },
    }
}


def conversation_routes(context: ServerContext, store: ConversationStore) -> APIRouter:
    """The conversations themselves; their turns are in `turn_routes`."""
    router = APIRouter(tags=["conversations"])

    @router.post("/v1/conversations", status_code=201)
    async def create(body: ConversationBody | None = None) -> dict[str, Any]:
        """Begins a conversation. Its id is all that is needed to use it; there is no list."""
        asked = body or ConversationBody.model_validate({})
        store.make_space()
        title, specs = check_title(asked.title), dict(asked.speakers)
        if not specs and context.settings.voice:
            specs = {0: SpeakerBody(voice=context.settings.voice)}

        def load() -> tuple[dict[int, HeldSpeaker], list[HeldClip]]:
            speakers = {number: load_speaker(context, number, spec) for number, spec in specs.items()}
            clips = [load_context(context, index, clip) for index, clip in enumerate(asked.context)]
            return speakers, clips

        speakers, clips = await run_in_threadpool(load)
        options = asked.options.over(context.settings.flags)
        conversation = HeldConversation(title, speakers, clips, options)
        return store.add(conversation).record(store.ttl)

    @router.get("/v1/conversations/{conversation_id}")
    async def get(conversation_id: str) -> dict[str, Any]:
        """The conversation with its turns and their takes."""
        return store.get(conversation_id).record(store.ttl)

    @router.patch("/v1/conversations/{conversation_id}")
    async def change(conversation_id: str, body: ConversationPatch) -> dict[str, Any]:
        """Changes the title and speakers. After a change of a voice, turns spoken before are outdated."""
        conversation = store.get(conversation_id)
        title = None if body.title is None else check_title(body.title)
        owner = object()
        conversation.reserve(owner)
        try:
            speakers = dict(conversation.speakers)
            for number, spec in body.speakers.items():
                if spec is None:
                    if conversation.uses(number):
                        raise Conflict(f"speakers.{number}: the speaker has turns")
                    speakers.pop(number, None)
                    continue
                present = speakers.get(number)
                speakers[number] = await run_in_threadpool(load_speaker, context, number, spec, present)
            conversation.set_speakers(speakers)
            conversation.title = conversation.title if title is None else title
        finally:
            conversation.release(owner)
        return conversation.record(store.ttl)

    @router.delete("/v1/conversations/{conversation_id}")
    async def delete(conversation_id: str) -> dict[str, Any]:
        """Removes the conversation; a turn that is being spoken ends."""
        conversation = store.remove(conversation_id)
        if conversation.job:
            context.service.cancel(conversation.job)
        return {"id": conversation.id, "object": "conversation", "deleted": True}

    @router.get("/v1/conversations/{conversation_id}/export", response_class=Response)
    async def export(conversation_id: str, name: Annotated[ExportFormat, Query(alias="format")] = "wav") -> Response:
        """The mixed track, its subtitles, a script for `csm converse`, or all of them in a zip."""
        files = ConversationExport(store.get(conversation_id), context.synth.checkpoint)
        data, media_type = await run_in_threadpool(files.file, name)
        headers = {"content-disposition": f'attachment; filename="conversation.{name}"'}
        return Response(data, media_type=media_type, headers=headers)

    return router


def turn_routes(context: ServerContext, store: ConversationStore) -> APIRouter:
    """The turns of conversations, and their takes."""
    router = APIRouter(prefix="/v1/conversations/{conversation_id}/turns", tags=["conversations"])

    async def speak(
        request: Request, conversation: HeldConversation, turn: HeldTurn, index: int, fields: SpokenFields
    ) -> Response:
        speech = TurnSpeech(context, conversation, turn, index, fields.options, fields.streamed)
        try:
            return await SpokenResponse(context, fields, speech.prepare, speech).send(request)
        except BaseException:
            speech.closed()
            raise

    @router.post("", response_class=Response, openapi_extra=_TURN_SCHEMA)
    async def add(conversation_id: str, request: Request) -> Response:
        """Speaks the next turn, as `/v1/audio/speech` does; with `audio`, adds a recorded one.

        With `position` it is inserted, in the history before that place; later turns are then outdated.

        A turn whose client leaves before its end is not added.
        """
        conversation = store.get(conversation_id)
        body, recording = await read_turn(request)
        text = check_text("input", body.input)
        index = conversation.index_of("position", body.position, len(conversation.turns) + 1)
        gap = body.gap if body.gap is not None else DEFAULT_GAP if index else 0.0
        turn = HeldTurn(body.speaker, text, gap, body.gain, recorded=recording is not None)
        store.make_space_for_audio()
        if recording is None:
            return await speak(request, conversation, turn, index, body)
        conversation.check_space()
        conversation.reserve(turn)
        try:
            utterance = await run_in_threadpool(load_recording, context, turn, recording)
            conversation.declare(turn.speaker)
            turn.add_take(utterance)
            conversation.turns.insert(index, turn)
        finally:
            conversation.release(turn)
        return JSONResponse(conversation.turn_record(turn), 201)

    @router.post("/{turn_id}/takes", response_class=Response)
    async def add_take(
        conversation_id: str, turn_id: str, request: Request, body: SpokenFields | None = None
    ) -> Response:
        """Speaks another take of a turn in the history before it, and picks it; later turns are then outdated."""
        conversation = store.get(conversation_id)
        index, turn = conversation.find_turn(turn_id)
        if turn.recorded:
            raise Conflict("turn: it is a recording; delete it and add another")
        store.make_space_for_audio()
        return await speak(request, conversation, turn, index, body or SpokenFields.model_validate({}))

    @router.patch("/{turn_id}")
    async def change(conversation_id: str, turn_id: str, body: TurnPatch) -> dict[str, Any]:
        """Picks a take, moves the turn, or changes what is spoken, which drops its takes."""
        conversation = store.get(conversation_id)
        present, turn = conversation.find_turn(turn_id)
        text = turn.text if body.input is None else check_text("input", body.input)
        speaker = turn.speaker if body.speaker is None else body.speaker
        conversation.reserve(turn)
        try:
            if body.take is not None:
                turn.find_take(body.take)
            index = conversation.index_of("number", body.number or present + 1, len(conversation.turns))
            if (text, speaker) != (turn.text, turn.speaker):
                conversation.declare(speaker)
                turn.change_words(speaker, text)
            if body.take is not None:
                turn.picked = turn.find_take(body.take).number
            if index != present:
                conversation.turns.remove(turn)
                conversation.turns.insert(index, turn)
            turn.gap = turn.gap if body.gap is None else body.gap
            turn.gain = turn.gain if body.gain is None else body.gain
        finally:
            conversation.release(turn)
        return conversation.turn_record(turn)

    @router.delete("/{turn_id}")
    async def delete(conversation_id: str, turn_id: str) -> dict[str, Any]:
        """Removes a turn and its takes."""
        conversation = store.get(conversation_id)
        index, turn = conversation.find_turn(turn_id)
        conversation.reserve(turn)
        del conversation.turns[index]
        conversation.release(turn)
        return {"id": turn.id, "object": "conversation.turn", "deleted": True}

    @router.get("/{turn_id}/audio", response_class=Response)
    async def audio(
        conversation_id: str,
        turn_id: str,
        take: int | None = None,
        name: Annotated[ResponseFormat, Query(alias="format")] = "wav",
    ) -> Response:
        """The audio of one take, by default the picked one."""
        _, turn = store.get(conversation_id).find_turn(turn_id)
        utterance = turn.find_take(turn.picked if take is None else take).utterance
        tags = audio_tags([utterance], context.synth.checkpoint)
        data = await run_in_threadpool(whole_file, utterance.audio, name, tags)
        return Response(data, media_type=FORMATS[name].media_type)

    return router


async def read_turn(request: Request) -> tuple[TurnBody, bytes | None]:
    """The body of a new turn, as JSON or as a form; and the file of a recorded one.

    Raises:
        InputError: it is neither, or a field is invalid.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        async with request.form(max_files=1, max_fields=16) as form:
            file = form.get("audio")
            if not isinstance(file, UploadFile):
                raise InputError("audio: expected a file")
            values = {name: value for name, value in form.items() if isinstance(value, str)}
            return _validated(TurnBody, values), await file.read()
    try:
        data = await request.json()
    except (ValueError, RecursionError) as problem:
        raise InputError("body: expected a JSON object") from problem
    body = _validated(TurnBody, data)
    return body, None if body.audio is None else decode_audio("audio", body.audio)


def _validated(model: type[Body], data: object) -> Body:
    if not isinstance(data, Mapping):
        raise InputError("body: expected a JSON object")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise InputError(describe_validation(list(error.errors()))[0]) from error


def check_title(title: str) -> str:
    """Raises InputError: it has control characters."""
    if problem := text_problem(title):
        raise InputError(f"title: {problem}")
    return " ".join(title.split())


def load_speaker(
    context: ServerContext, number: int, spec: SpeakerBody, present: HeldSpeaker | None = None
) -> HeldSpeaker:
    """A speaker with the voice that a client asks for; called on a worker. present: what they were before.

    Raises:
        InputError, VoiceNotFound: an unusable name, voice or clip.
    """
    where = f"speakers.{number}"
    name = _speaker_name(where, spec.name) if spec.name is not None else present.name if present else str(number)
    if present and spec.model_fields_set <= {"name"}:
        return replace(present, name=name)
    if (spec.ref_audio is None) != (spec.ref_text is None) or (spec.ref_audio and spec.voice):
        raise InputError(f"{where}: give a voice, or ref_audio and ref_text, which belong together")
    if spec.ref_audio is not None:
        turn = Turn(number, check_text(f"{where}.ref_text", spec.ref_text or ""), str(number))
        return HeldSpeaker(name, None, _load_clip(context, turn, f"{where}.ref_audio", spec.ref_audio))
    if spec.voice_name is None:
        return HeldSpeaker(name)
    voice = resolve_voice(spec.voice_name)
    turn = voice.turn(number, str(number))
    seconds = context.synth.read_recording(turn.recording).duration if turn.recording else 0.0
    data = b"" if voice.bundled else voice.audio.read_bytes()
    clip = HeldClip(turn, context.synth.recorded_turn_tokens(turn), data, voice.audio.suffix[1:], seconds)
    return HeldSpeaker(name, voice.name, clip)


def _speaker_name(where: str, text: str) -> str:
    """A name that a script can have. Raises InputError."""
    name = " ".join(text.split())
    problem = text_problem(name)
    if not problem and not 1 <= len(name) <= MAX_NAME_CHARS:
        problem = f"a name has 1 to {MAX_NAME_CHARS} characters"
    if not problem and name in TURN_FIELDS:
        problem = f"{name!r} is a word of scripts; choose another name"
    if problem:
        raise InputError(f"{where}.name: {problem}")
    return name


def load_context(context: ServerContext, index: int, clip: ContextClip) -> HeldClip:
    """A clip before the turns; called on a worker. Raises InputError."""
    turn = Turn(clip.speaker, check_text(f"context.{index}.text", clip.text), str(clip.speaker))
    return _load_clip(context, turn, f"context.{index}.audio", clip.audio)


def _load_clip(context: ServerContext, turn: Turn, name: str, audio: str) -> HeldClip:
    wav = context.clips.as_wav(name, decode_audio(name, audio))
    seconds = context.clips.read(name, wav).duration
    return HeldClip(turn, context.clips.context(turn, name, wav)[1], wav, "wav", seconds)


def load_recording(context: ServerContext, turn: HeldTurn, data: bytes) -> Utterance:
    """A recorded turn; called on a worker. Raises AudioUnreadable."""
    wav = context.clips.as_wav("audio", data)
    codes: torch.Tensor = context.clips.codes("audio", wav)
    spoken = Turn(turn.speaker, turn.text, str(turn.speaker))
    return Utterance(Conversation(()), spoken, codes, context.clips.read("audio", wav), "recorded")
