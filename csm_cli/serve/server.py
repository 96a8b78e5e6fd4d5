"""Runs the application on uvicorn, until a signal stops it gracefully."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from csm_cli.errors import UsageError
from csm_cli.serve.limits import MAX_SOCKET_MESSAGE_BYTES
from csm_cli.serve.service import SpeechService

_MAX_HEADER_BYTES = 32 << 10
_KEEP_ALIVE_SECONDS = 15
_POLL_SECONDS = 0.05


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal on; running ones are finished. A second signal ends them."""

    def __init__(self, config: uvicorn.Config, service: SpeechService) -> None:
        super().__init__(config)
        self._service = service
        self.signal: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        self.signal = sig
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Waits for what is spoken, since uvicorn closes WebSockets at once."""
        while self._service.open_streams and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        UsageError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(256)
    except OSError as problem:
        raise UsageError(
            f"cannot listen on {host}:{port} ({problem.strerror or problem}); try another --port"
        ) from problem
    return bound


def run_server(app: FastAPI, service: SpeechService, bound: socket.socket, on_start: Callable[[], None]) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ws_max_size=MAX_SOCKET_MESSAGE_BYTES,
        lifespan="on",
    )
    server = _Server(config, service)
    # uvicorn raises the signal again when it is done; then it is done
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)
    on_start()
    server.run(sockets=[bound])
    return 130 if server.signal == signal.SIGINT else 0
