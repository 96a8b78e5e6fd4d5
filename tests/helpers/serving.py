"""A real server on a free loopback port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.app import create_app
from csm_cli.serve.context import ServeSettings
from csm_cli.serve.server import listen
from csm_cli.serve.service import SpeechService
from csm_cli.types import GenerationOptions, RetryPolicy

LENIENT = RetryPolicy(chunk_chars=80)  # random models make no usable takes


@dataclass(frozen=True)
class RunningServer:
    url: str
    service: SpeechService
    http: httpx2.Client

    def wait_until_busy(self, seconds: float = 10) -> None:
        """Waits until a job has a slot."""
        end = time.monotonic() + seconds
        while not self.service.busy:
            assert time.monotonic() < end
            time.sleep(0.001)

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Waits until no job is left."""
        end = time.monotonic() + seconds
        while self.service.busy or self.service.queued:
            assert time.monotonic() < end, (self.service.busy, self.service.queued)
            time.sleep(0.01)


@contextmanager
def running_server(
    synth: Synthesizer, max_queue: int = 16, policy: RetryPolicy = LENIENT, **settings: Any
) -> Iterator[RunningServer]:
    service = SpeechService(synth, max_queue)
    service.start(warm_up=False)
    flags = settings.pop("flags", GenerationOptions(max_duration=0.8))
    app = create_app(service, ServeSettings(flags, policy, settings.pop("deadline", 60.0), **settings))
    bound = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=60) as http:
            yield RunningServer(url, service, http)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
