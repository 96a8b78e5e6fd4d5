"""WebSocket `/v1/audio/speech/stream`: text comes in as it is written, and each sentence is spoken when it is complete.

The protocol is that of vLLM-Omni. All sentences of a socket are one conversation, so that each continues the others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocketState
from torch import Tensor

from csm_cli.audio.stream_encoders import new_encoder
from csm_cli.audio.tempo import TempoChanger
from csm_cli.errors import CsmError, GenerationFailed, InputError, ServerBusy, failure_of
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.history import PastTurn, resumed_state
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.text_stream import SentenceStream
from csm_cli.serve.context import ServerContext, new_id
from csm_cli.serve.events import EventStream, encoded
from csm_cli.serve.limits import MAX_INPUT_CHARS, MAX_PAST_SENTENCES, MAX_SOCKETS, SOCKET_IDLE_SECONDS
from csm_cli.serve.problems import problem_of
from csm_cli.serve.schema import InputDone, InputText, SocketConfig, SocketMessage, describe_validation
from csm_cli.serve.speech import load_voice
from csm_cli.serve.voices import check_text
from csm_cli.types import Conversation, GenerationOptions, Turn

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.25  # between two tries of a sentence for which no slot is free
_MESSAGE: TypeAdapter[SocketConfig | InputText | InputDone] = TypeAdapter(SocketMessage)


class IdleSocket(InputError):
    """Nothing came and nothing was spoken for too long."""


@dataclass(eq=False)
class SocketSession:
    """The conversation of a socket since its last configuration.

    context: turns before it and their prompt tokens. spoken: sentences so far. past: the last ones of them.
    """

    config: SocketConfig
    context: tuple[tuple[Turn, Tensor], ...] = ()
    spoken: int = 0
    past: list[PastTurn] = field(default_factory=list)
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))


class SpeechSocket:
    """One socket: reads its messages while the sentences before are spoken."""

    def __init__(self, context: ServerContext, socket: WebSocket) -> None:
        self._context, self._socket = context, socket
        self._session = SocketSession(SocketConfig.model_validate({}))
        self._sentences: asyncio.Queue[tuple[SocketSession, str] | None] = asyncio.Queue()  # None: the input is done
        self._stream = SentenceStream(context.settings.language, context.settings.policy.chunk_chars)
        self._pending_chars = 0  # of sentences that are not spoken yet
        self._active = time.monotonic()

    async def run(self) -> None:
        """Serves until the client leaves; whatever is spoken then ends."""
        await self._socket.accept()
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._speak())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, OSError):
            pass
        except Exception as problem:
            await self._end(failure_of(problem))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, error: CsmError) -> None:
        """Reports the error that ends the session, and closes the socket."""
        if problem_of(error).status == 500:
            log.error("text stream: %s", error, exc_info=error.__cause__ or error)
        try:
            await self._send_error(error)
            await self._socket.close(1013 if isinstance(error, ServerBusy) else 1008)
        except (WebSocketDisconnect, OSError, RuntimeError):  # it is closed already
            pass

    async def _read(self) -> None:
        """Reads messages. One that is not valid is reported, and changes nothing."""
        while True:
            message = await self._receive()
            try:
                await self._handle(_parse(message))
            except CsmError as error:
                if isinstance(error, ServerBusy):
                    raise
                await self._send_error(error)

    async def _receive(self) -> Any:
        """The next message. Raises WebSocketDisconnect, and IdleSocket."""
        while True:
            left = SOCKET_IDLE_SECONDS - (time.monotonic() - self._active)
            if left <= 0 and self._pending_chars == 0:
                raise IdleSocket(f"nothing came for {SOCKET_IDLE_SECONDS} s; open another socket")
            try:
                message = await asyncio.wait_for(self._socket.receive(), max(left, 1.0))
            except TimeoutError:
                continue
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006))
            self._active = time.monotonic()
            return message

    async def _handle(self, message: SocketConfig | InputText | InputDone) -> None:
        if isinstance(message, SocketConfig):
            self._context.model(message.model)
            context = await run_in_threadpool(load_voice, self._context, message)
            self._queue(self._stream.finish())
            session = SocketSession(message, tuple(context))
            if message.options.seed is not None:
                session.seed = message.options.seed
            self._session = session
        elif isinstance(message, InputText):
            if len(message.text) + len(self._stream.pending) + self._pending_chars > MAX_INPUT_CHARS:
                raise InputError(f"text: more than {MAX_INPUT_CHARS:,} characters wait to be spoken; send them later")
            self._queue(self._stream.push(message.text))
        else:
            self._queue(self._stream.finish())
            self._sentences.put_nowait(None)

    def _queue(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._pending_chars += len(sentence)
            self._sentences.put_nowait((self._session, sentence))

    async def _speak(self) -> None:
        """Speaks sentences in their order. A failure is of one sentence."""
        total = 0
        while True:
            item = await self._sentences.get()
            if item is None:
                await self._socket.send_json({"type": "session.done", "total_sentences": total})
                total = 0
                continue
            session, sentence = item
            try:
                await self._say(session, check_text("text", sentence), total)
            except ServerBusy:
                raise
            except CsmError as error:
                if problem_of(error).status == 500:
                    log.error("text stream: %s", error, exc_info=error.__cause__ or error)
                await self._send_error(error)
            finally:
                self._pending_chars -= len(sentence)
                self._active = time.monotonic()
            total += 1

    async def _say(self, session: SocketSession, sentence: str, index: int) -> None:
        """Speaks a sentence. Raises CsmError: it failed, after `audio.done` if it had begun."""
        config, rate = session.config, self._context.synth.codec.rate
        encoder = new_encoder(config.response_format, rate, f"synthetic speech; model: {self._context.model_name}")
        stream = await self._submit(session, sentence)
        name, size = config.response_format, 0
        failure: CsmError | None = None
        with stream:
            start = {"sentence_index": index, "sentence_text": sentence, "format": name, "sample_rate": rate}
            await self._socket.send_json({"type": "audio.start", **start})
            try:
                audio = encoded(stream, await stream.next_chunk(), encoder, TempoChanger(rate, config.speed))
                async for data in audio if config.streamed else _joined(audio):
                    size += len(data)
                    await self._socket.send_bytes(data)
                utterance = stream.require_utterance()
                if utterance.fault:
                    failure = GenerationFailed(f"the sentence {utterance.fault}; try another seed or text")
                else:
                    session.past = [*session.past, PastTurn.of(utterance)][-MAX_PAST_SENTENCES:]
            except CsmError as error:
                failure = error
            done = {"sentence_index": index, "total_bytes": size, "error": failure is not None}
            await self._socket.send_json({"type": "audio.done", **done})
        if failure:
            raise failure

    async def _submit(self, session: SocketSession, sentence: str) -> EventStream:
        """The events of a sentence. Where the queue is full, the first sentence is refused, and later ones wait."""
        context, config, past = self._context, session.config, tuple(session.past)
        options = replace(config.options.over(context.settings.flags), seed=(session.seed + session.spoken) % 2**63)
        turn = Turn(config.speaker, sentence, str(config.speaker), options=options)

        def prepare(synth: Synthesizer) -> ConversationState:
            conversation = Conversation(
                (*(each.turn for each in past), turn),
                tuple(each for each, _ in session.context),
                new_id("speech"),
                language=context.settings.language,
                normalize=context.settings.normalize,
                lexicon=context.settings.lexicon,
            )
            defaults = ResolvedDefaults(GenerationOptions(), synth.checkpoint.defaults, context.policy(stream=True))
            return resumed_state(synth, conversation, defaults, [tokens for _, tokens in session.context], past)

        end = time.monotonic() + context.settings.deadline
        while True:
            try:
                stream = EventStream(context.service, prepare, context.settings.deadline)
                session.spoken += 1
                return stream
            except ServerBusy:
                if session.spoken == 0 or context.service.draining or time.monotonic() > end:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)

    async def _send_error(self, error: CsmError) -> None:
        body = problem_of(error).body
        await self._socket.send_json({"type": "error", "message": body["error"]["message"], **body})


def _parse(message: Any) -> SocketConfig | InputText | InputDone:
    """Raises InputError: not one of the messages."""
    text = message.get("text")
    if text is None:
        raise InputError("message: expected JSON as text, not a binary frame")
    try:
        return _MESSAGE.validate_python(json.loads(text))
    except ValidationError as error:
        raise InputError(describe_validation(list(error.errors()))[0]) from error
    except (ValueError, RecursionError) as problem:
        raise InputError("message: expected a JSON object with a type") from problem


async def _joined(audio: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """All chunks as one."""
    yield b"".join([data async for data in audio])


def socket_routes(context: ServerContext) -> APIRouter:
    """Text streamed in."""
    router = APIRouter()
    sockets: set[WebSocket] = set()
    context.service.metrics.watch_sockets(lambda: len(sockets))

    @router.websocket("/v1/audio/speech/stream")
    async def stream_speech(socket: WebSocket) -> None:
        """Speaks text that is streamed in; see docs/serve.md."""
        if len(sockets) >= MAX_SOCKETS or context.service.draining:
            await socket.close(1013)
            return
        sockets.add(socket)
        try:
            await SpeechSocket(context, socket).run()
        finally:
            sockets.discard(socket)
        if socket.application_state is WebSocketState.CONNECTED and socket.client_state is WebSocketState.CONNECTED:
            await socket.close()

    return router
