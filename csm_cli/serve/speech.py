"""`POST /v1/audio/speech`, and how every spoken response is sent: as chunks, as server-sent events, or whole."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from torch import Tensor

from csm_cli.audio.io import Audio, encode
from csm_cli.errors import CsmError, GenerationFailed, InputError
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import Utterance, audio_tags
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.encoders import STREAM_FORMATS, StreamEncoder, new_encoder
from csm_cli.serve.events import EventStream, encode_last, encoded, unless_disconnected
from csm_cli.serve.limits import MAX_IGNORED_NAMES
from csm_cli.serve.problems import problem_of
from csm_cli.serve.schema import SpeechBody, SpokenFields, decode_audio
from csm_cli.serve.service import SpeechService
from csm_cli.serve.tempo import TempoChanger
from csm_cli.serve.voices import ClipEncoder, check_text, resolve_voice
from csm_cli.types import DEFAULT_LANGUAGE, Conversation, GenerationOptions, RetryPolicy, Turn

MODEL_ALIASES = ("csm", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")

Prepare = Callable[[Synthesizer], ConversationState]


@dataclass(frozen=True, eq=False)
class ServeSettings:
    """What the server was started with.

    flags, policy, language, normalize: options of its command line. deadline: seconds per request.
    """

    flags: GenerationOptions
    policy: RetryPolicy
    deadline: float
    voice: str | None = None
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    language: str = DEFAULT_LANGUAGE
    normalize: bool = False


@dataclass(frozen=True, eq=False)
class ServerContext:
    """What the routes share."""

    service: SpeechService
    settings: ServeSettings
    clips: ClipEncoder

    @property
    def synth(self) -> Synthesizer:
        return self.service.synth

    @property
    def model_name(self) -> str:
        """The checkpoint without the folders of a local path."""
        name = self.synth.checkpoint.name
        return name if self.synth.checkpoint.revision else Path(name).name.replace(" ", "-")

    def policy(self, stream: bool) -> RetryPolicy:
        """Whole files are retried as in the commands; a stream has one take that is trimmed as it goes."""
        policy = self.settings.policy
        if not stream:
            return policy
        return RetryPolicy(policy.trim, policy.max_retries, chunk_chars=policy.chunk_chars, stream=True)

    def defaults(self, options: GenerationOptions, stream: bool) -> ResolvedDefaults:
        """The options of a request over those of the server."""
        merged = options.over(self.settings.flags)
        return ResolvedDefaults(merged, self.synth.checkpoint.defaults, self.policy(stream))

    def model(self, name: str) -> None:
        """Raises InputError if a client asks for another model; nothing is looked up by that name."""
        if name not in (*MODEL_ALIASES, self.model_name):
            raise InputError(f"model: there is only {self.model_name!r} here, also as {', '.join(MODEL_ALIASES)}")


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def context_of(state: ConversationState, context: Sequence[tuple[Turn, Tensor]]) -> ConversationState:
    """The state with its context turns, whose prompt tokens are known."""
    tokens = iter([each for _, each in context])
    state.add_context(lambda turn: next(tokens))
    return state


def prepare_speech(context: ServerContext, body: SpeechBody) -> Prepare:
    """Checks a request and returns what makes its state; files are read there, on a worker.

    Raises:
        InputError, VoiceNotFound: the request cannot be spoken.
    """
    context.model(body.model)
    text = check_text("input", body.input)
    if (body.ref_audio is None) != (body.ref_text is None):
        raise InputError("ref_audio and ref_text belong together; give both or neither")
    clips: list[tuple[Turn, str, bytes]] = []
    name = body.voice_name or (context.settings.voice if body.ref_audio is None else None)
    voice = resolve_voice(name) if name and body.ref_audio is None else None
    if body.ref_audio is not None:
        turn = Turn(body.speaker, check_text("ref_text", body.ref_text or ""))
        clips.append((turn, "ref_audio", decode_audio("ref_audio", body.ref_audio)))
    for index, clip in enumerate(body.context):
        turn = Turn(clip.speaker, check_text(f"context.{index}.text", clip.text))
        clips.append((turn, f"context.{index}.audio", decode_audio(f"context.{index}.audio", clip.audio)))
    defaults = context.defaults(body.options, body.stream)

    def prepare(synth: Synthesizer) -> ConversationState:
        spoken: list[tuple[Turn, Tensor]] = []
        if voice:
            turn = voice.turn(body.speaker, str(body.speaker))
            spoken.append((turn, synth.recorded_turn_tokens(turn)))
        spoken += [context.clips.context(*each) for each in clips]
        conversation = Conversation(
            (Turn(body.speaker, text, str(body.speaker)),),
            tuple(turn for turn, _ in spoken),
            new_id("speech"),
            language=context.settings.language,
            normalize=context.settings.normalize,
        )
        return context_of(synth.new_state(conversation, defaults), spoken)

    return prepare


@dataclass(frozen=True, eq=False)
class SpokenResponse:
    """Sends the audio of a job."""

    context: ServerContext
    fields: SpokenFields
    prepare: Prepare

    async def send(self, request: Request) -> Response:
        """The response, when the first audio is there, so that a failure before that has its own status.

        Raises:
            CsmError: the request failed. ClientDisconnect: the client left.
        """
        context, fields = self.context, self.fields
        stream: EventStream | None = None
        try:
            encoder = new_encoder(fields.response_format, context.synth.codec.rate, self._comment())
            tempo = TempoChanger(context.synth.codec.rate, fields.speed)
            stream = EventStream(context.service, self.prepare, context.settings.deadline)
            if not fields.stream and fields.stream_format == "audio":
                return await self._send_whole(request, stream, tempo)
            first = await unless_disconnected(request, stream.next_chunk())
            if first is None and stream.utterance and stream.utterance.fault:
                raise GenerationFailed(f"the turn {stream.utterance.fault}; try another seed or text")
        except BaseException:
            if stream:
                stream.__exit__()
            raise
        sse = fields.stream_format == "sse"
        audio = encoded(stream, first, encoder, tempo)
        body = self._events(stream, audio) if sse else self._audio(stream, audio)
        media_type = "text/event-stream" if sse else STREAM_FORMATS[fields.response_format].media_type
        headers = self._headers() | ({"cache-control": "no-cache"} if sse else {})
        return StreamingResponse(body, media_type=media_type, headers=headers)

    async def _send_whole(self, request: Request, stream: EventStream, tempo: TempoChanger) -> Response:
        """The whole file with its metadata. A turn without a usable take is an error."""
        try:
            while await unless_disconnected(request, stream.next_chunk()):
                pass
            utterance = stream.utterance
            assert utterance is not None
            if utterance.fault:
                faults = ", ".join(f"{take.fault} with seed {take.seed}" for take in utterance.takes if take.fault)
                raise GenerationFailed(f"no usable take: {faults}; try another seed or text")
            data = await run_in_threadpool(self._whole_file, utterance, tempo)
        finally:
            stream.__exit__()
        headers = self._headers() | {
            "x-csm-stop": utterance.stop,
            "x-csm-seed": str(utterance.seed),
            "x-csm-duration": f"{utterance.audio.duration:.3f}",
        }
        return Response(data, media_type=STREAM_FORMATS[self.fields.response_format].media_type, headers=headers)

    def _whole_file(self, utterance: Utterance, tempo: TempoChanger) -> bytes:
        import numpy as np

        name, rate = self.fields.response_format, utterance.audio.rate
        samples = np.concatenate((tempo.push(utterance.audio.samples), tempo.finish()))
        tags = audio_tags([utterance], self.context.synth.checkpoint)
        if name in ("wav", "flac", "pcm"):
            return encode(Audio(samples, rate), name, tags)
        encoder: StreamEncoder = new_encoder(name, rate, tags.comment)
        return encode_last(encoder, samples)

    async def _audio(self, stream: EventStream, audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for data in audio:
                yield data
        finally:
            stream.__exit__()

    async def _events(self, stream: EventStream, audio: AsyncIterator[bytes]) -> AsyncIterator[str]:
        """OpenAI's events; an error after the first audio is an event too."""
        try:
            async for data in audio:
                if data:
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            utterance = stream.utterance
            assert utterance is not None
            state = stream.job.require_state()
            texts = state.conversation.turns[-1].text
            tokens = len(self.context.synth.prompt_builder.text_ids(utterance.turn.speaker, texts))
            usage = {"input_tokens": tokens, "output_tokens": len(utterance.codes)}
            usage["total_tokens"] = sum(usage.values())
            last = {"type": "speech.audio.done", "usage": usage, "stop": utterance.stop, "seed": utterance.seed}
            yield _event(last | {"fault": utterance.fault or None})
        except CsmError as error:
            yield _event({"type": "error", **problem_of(error).body})
        finally:
            stream.__exit__()

    def _headers(self) -> dict[str, str]:
        ignored = [name for name in self.fields.ignored if name.isascii() and name.isprintable()]
        headers = {"x-sample-rate": str(self.context.synth.codec.rate), "x-channels": "1", "x-bit-depth": "16"}
        if ignored:
            headers["x-csm-ignored"] = ", ".join(name[:40] for name in ignored[:MAX_IGNORED_NAMES])
        return headers

    def _comment(self) -> str:
        return f"synthetic speech; model: {self.context.model_name}"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def speech_routes(context: ServerContext) -> APIRouter:
    """OpenAI's endpoint."""
    router = APIRouter(tags=["speech"])

    @router.post("/v1/audio/speech", response_class=Response)
    async def create_speech(body: SpeechBody, request: Request) -> Response:
        """Speaks a text; the audio is sent while it is made."""
        prepare = await run_in_threadpool(prepare_speech, context, body)
        return await SpokenResponse(context, body, prepare).send(request)

    return router
