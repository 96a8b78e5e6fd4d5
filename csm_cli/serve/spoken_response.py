"""How speech is sent: as chunks of audio, as server-sent events, or as a whole file."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from csm_cli.audio.formats import FILE_FORMATS, FORMATS
from csm_cli.audio.io import Audio, Tags, encode
from csm_cli.audio.stream_encoders import new_encoder
from csm_cli.audio.tempo import TempoChanger
from csm_cli.errors import CsmError, GenerationFailed
from csm_cli.generation.events import Utterance, audio_tags
from csm_cli.serve.context import Prepare, ServerContext
from csm_cli.serve.events import EventStream, encode_last, encoded, unless_disconnected
from csm_cli.serve.limits import MAX_IGNORED_NAMES
from csm_cli.serve.problems import problem_of
from csm_cli.serve.schema import SpokenFields
from csm_cli.serve.service import SpeechJob


class SpeechListener:
    """Who keeps track of a speech beside its client. It is called on the event loop."""

    @property
    def headers(self) -> Mapping[str, str]:
        """More headers of the response."""
        return {}

    def started(self, job: SpeechJob) -> None:
        """The job was submitted."""

    def finished(self, utterance: Utterance) -> Mapping[str, Any]:
        """All audio was sent. Returns more fields of the last event."""
        return {}

    def closed(self) -> None:
        """Nothing follows, whether or not it was finished; may be called several times."""


@dataclass(frozen=True, eq=False)
class SpokenResponse:
    """Sends the audio of a job."""

    context: ServerContext
    fields: SpokenFields
    prepare: Prepare
    listener: SpeechListener = field(default_factory=SpeechListener)

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
            self.listener.started(stream.job)
            if not fields.streamed:
                return await self._send_whole(request, stream, tempo)
            first = await unless_disconnected(request, stream.next_chunk())
            if first is None and stream.utterance and stream.utterance.fault:
                raise GenerationFailed(f"the turn {stream.utterance.fault}; try another seed or text")
        except BaseException:
            self._close(stream)
            raise
        sse = fields.stream_format == "sse"
        audio = encoded(stream, first, encoder, tempo)
        body = self._events(stream, audio) if sse else self._audio(stream, audio)
        media_type = "text/event-stream" if sse else FORMATS[fields.response_format].media_type
        headers = self._headers() | ({"cache-control": "no-cache"} if sse else {})
        return _SpeechStream(lambda: self._close(stream), body, media_type=media_type, headers=headers)

    async def _send_whole(self, request: Request, stream: EventStream, tempo: TempoChanger) -> Response:
        """The whole file with its metadata. A turn without a usable take is an error."""
        try:
            while await unless_disconnected(request, stream.next_chunk()):
                pass
            utterance = stream.require_utterance()
            if utterance.fault:
                faults = ", ".join(f"{take.fault} with seed {take.seed}" for take in utterance.takes if take.fault)
                raise GenerationFailed(f"no usable take: {faults}; try another seed or text")

            def whole() -> bytes:
                audio = utterance.audio
                samples = np.concatenate((tempo.push(audio.samples), tempo.finish()))
                tags = audio_tags([utterance], self.context.synth.checkpoint)
                return whole_file(Audio(samples, audio.rate), self.fields.response_format, tags)

            data = await unless_disconnected(request, run_in_threadpool(whole))
            self.listener.finished(utterance)
        finally:
            self._close(stream)
        headers = self._headers() | {
            "x-csm-stop": utterance.stop,
            "x-csm-seed": str(utterance.seed),
            "x-csm-duration": f"{utterance.audio.duration:.3f}",
        }
        return Response(data, media_type=FORMATS[self.fields.response_format].media_type, headers=headers)

    async def _audio(self, stream: EventStream, audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for data in audio:
                yield data
            self.listener.finished(stream.require_utterance())
        finally:
            self._close(stream)

    async def _events(self, stream: EventStream, audio: AsyncIterator[bytes]) -> AsyncIterator[str]:
        """OpenAI's events; an error after the first audio is an event too."""
        try:
            async for data in audio:
                if data:
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            utterance = stream.require_utterance()
            tokens = len(self.context.synth.prompt_builder.text_ids(utterance.turn.speaker, utterance.turn.text))
            usage = {"input_tokens": tokens, "output_tokens": len(utterance.codes)}
            usage["total_tokens"] = sum(usage.values())
            last = {"type": "speech.audio.done", "usage": usage, "stop": utterance.stop, "seed": utterance.seed}
            more = self.listener.finished(utterance)
            self._close(stream)  # before the event, after which a client may send its next request
            yield _event({**last, "fault": utterance.fault or None, **more})
        except CsmError as error:
            yield _event({"type": "error", **problem_of(error).body})
        finally:
            self._close(stream)

    def _close(self, stream: EventStream | None) -> None:
        if stream:
            stream.__exit__()
        self.listener.closed()

    def _headers(self) -> dict[str, str]:
        ignored = [name for name in self.fields.ignored if name.isascii() and name.isprintable()]
        headers = {"x-sample-rate": str(self.context.synth.codec.rate), "x-channels": "1", "x-bit-depth": "16"}
        if ignored:
            headers["x-csm-ignored"] = ", ".join(name[:40] for name in ignored[:MAX_IGNORED_NAMES])
        return {**headers, **self.listener.headers}

    def _comment(self) -> str:
        return f"synthetic speech; model: {self.context.model_name}"


class _SpeechStream(StreamingResponse):
    """A stream that is closed in any case: a body that a client left before its first byte is never iterated."""

    def __init__(self, close: Callable[[], None], body: AsyncIterator[bytes | str], **response: Any) -> None:
        super().__init__(body, **response)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def whole_file(audio: Audio, name: str, tags: Tags) -> bytes:
    """A whole file in one of the formats of responses."""
    if name == "pcm" or name in FILE_FORMATS:
        return encode(audio, name, tags)
    return encode_last(new_encoder(name, audio.rate, tags.comment), audio.samples)


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
