"""One client's request on the event loop: the events of its job; when the client leaves, the job ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from csm_cli.audio.stream_encoders import Samples, StreamEncoder
from csm_cli.audio.tempo import TempoChanger
from csm_cli.errors import CsmError
from csm_cli.generation.conversation import ConversationState
from csm_cli.generation.events import AudioChunk, Event, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.problems import RequestCancelled
from csm_cli.serve.service import SpeechJob, SpeechService


class EventStream:
    """The events of one job. Used as a context: leaving it cancels the job, if it has not ended.

    Raises:
        ServerBusy: the queue is full.
    """

    def __init__(
        self,
        service: SpeechService,
        prepare: Callable[[Synthesizer], ConversationState],
        deadline: float,
    ) -> None:
        self._service, self._loop = service, asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | CsmError | None] = asyncio.Queue()
        self.utterance: Utterance | None = None
        self.job = SpeechJob(prepare, self._put, self._put, deadline)
        service.submit(self.job)
        service.open_streams.add(self.job.id)

    def _put(self, event: Event | CsmError | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.cancel(self.job)
        self._service.open_streams.discard(self.job.id)

    async def next_chunk(self) -> AudioChunk | None:
        """The next audio; None at the end, when `utterance` is set. Raises the error of the request."""
        while True:
            event = await self._queue.get()
            if event is None:
                if self.utterance is None:
                    raise RequestCancelled("the request was cancelled")
                return None
            if isinstance(event, CsmError):
                raise event
            if isinstance(event, Utterance):
                self.utterance = event
            if isinstance(event, AudioChunk):
                return event

    def require_utterance(self) -> Utterance:
        """The utterance of a job that has ended."""
        assert self.utterance is not None
        return self.utterance


async def unless_disconnected(request: Request, work: Any) -> Any:
    """The result of an awaitable, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def encoded(
    stream: EventStream, first: AudioChunk | None, encoder: StreamEncoder, tempo: TempoChanger
) -> AsyncIterator[bytes]:
    """The bytes of a stream whose first chunk has come already."""
    chunk = first
    while chunk is not None:
        if data := encoder.push(tempo.push(chunk.samples)):
            yield data
        chunk = await stream.next_chunk()
    yield encode_last(encoder, tempo.finish())


def encode_last(encoder: StreamEncoder, samples: Samples) -> bytes:
    """The bytes of the last samples and the end of the file."""
    return encoder.push(samples) + encoder.finish()
