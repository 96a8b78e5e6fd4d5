"""`POST /v1/audio/speech`."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from torch import Tensor

from csm_cli.errors import InputError
from csm_cli.generation.conversation import ConversationState
from csm_cli.generation.history import resumed_state
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.context import Prepare, ServerContext, new_id
from csm_cli.serve.schema import SpeechBody, VoiceFields, decode_audio
from csm_cli.serve.spoken_response import SpokenResponse
from csm_cli.serve.voices import check_text, resolve_voice
from csm_cli.types import Conversation, Turn


def load_voice(context: ServerContext, fields: VoiceFields) -> list[tuple[Turn, Tensor]]:
    """The context turns of a request, the voice first, with their prompt tokens [S, K + 1]; called on a worker.

    Raises:
        InputError, VoiceNotFound: the voice or a clip cannot be used.
    """
    return voice_loader(context, fields)()


def voice_loader(context: ServerContext, fields: VoiceFields) -> Callable[[], list[tuple[Turn, Tensor]]]:
    """Checks the voice and context of a request, and returns what encodes them. Raises as `load_voice`."""
    if (fields.ref_audio is None) != (fields.ref_text is None):
        raise InputError("ref_audio and ref_text belong together; give both or neither")
    clips: list[tuple[Turn, str, bytes]] = []
    name = fields.voice_name or (context.settings.voice if fields.ref_audio is None else None)
    voice = resolve_voice(name) if name and fields.ref_audio is None else None
    if fields.ref_audio is not None:
        turn = Turn(fields.speaker, check_text("ref_text", fields.ref_text or ""))
        clips.append((turn, "ref_audio", decode_audio("ref_audio", fields.ref_audio)))
    for index, clip in enumerate(fields.context):
        turn = Turn(clip.speaker, check_text(f"context.{index}.text", clip.text))
        clips.append((turn, f"context.{index}.audio", decode_audio(f"context.{index}.audio", clip.audio)))

    def load() -> list[tuple[Turn, Tensor]]:
        loaded: list[tuple[Turn, Tensor]] = []
        if voice:
            turn = voice.turn(fields.speaker, str(fields.speaker))
            loaded.append((turn, context.synth.recorded_turn_tokens(turn)))
        return loaded + [context.clips.context(*each) for each in clips]

    return load


def prepare_speech(context: ServerContext, body: SpeechBody) -> Prepare:
    """Checks a request and returns what makes its state; files are read there, on a worker.

    Raises:
        InputError, VoiceNotFound: the request cannot be spoken.
    """
    context.model(body.model)
    text = check_text("input", body.input)
    load = voice_loader(context, body)
    defaults = context.defaults(body.options, body.streamed)

    def prepare(synth: Synthesizer) -> ConversationState:
        loaded = load()
        conversation = Conversation(
            (Turn(body.speaker, text, str(body.speaker)),),
            tuple(turn for turn, _ in loaded),
            new_id("speech"),
            language=context.settings.language,
            normalize=context.settings.normalize,
            lexicon=context.settings.lexicon,
        )
        return resumed_state(synth, conversation, defaults, [tokens for _, tokens in loaded])

    return prepare


def speech_routes(context: ServerContext) -> APIRouter:
    """OpenAI's endpoint."""
    router = APIRouter(tags=["speech"])

    @router.post("/v1/audio/speech", response_class=Response)
    async def create_speech(body: SpeechBody, request: Request) -> Response:
        """Speaks a text; the audio is sent while it is made."""
        prepare = await run_in_threadpool(prepare_speech, context, body)
        return await SpokenResponse(context, body, prepare).send(request)

    return router
