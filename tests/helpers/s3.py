"""An S3 server of its own process, moto's, and a connection to it that can break in the middle of a request."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest

PYTHON = Path(__file__).parents[2] / "runs" / "storage" / "bin" / "python"
needs_server = pytest.mark.skipif(not PYTHON.exists(), reason="moto is not installed: make storage")
BUCKET = "bucket"
_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP/1\.1\r\n")
_SERVE = "from moto.server import main; main(['-H', '0.0.0.0', '-p', '{port}'])"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class S3:
    """port: of the server. Files are read and written without csm."""

    port: int

    def environment(self, port: int | None = None, host: str = "127.0.0.1") -> dict[str, str]:
        """For csm. port: of a link to the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://{host}:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __post_init__(self) -> None:
        self.system = fsspec.filesystem(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            key="key",
            secret="secret",
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def files(self, prefix: str) -> dict[str, bytes]:
        """The content of all files by their names below a prefix of the bucket."""
        root = f"{BUCKET}/{prefix}/"
        return {name.removeprefix(root): self.system.cat_file(name) for name in self.system.find(root)}

    def unfinished_uploads(self) -> list[str]:
        found = self.system.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads") or []
        return [each["Key"] for each in found]


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server with an empty bucket."""
    port = free_port()
    command = [str(PYTHON), "-c", _SERVE.format(port=port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
            server = S3(port)
            server.system.mkdir(BUCKET)
            yield server
        finally:
            process.send_signal(signal.SIGKILL)


@dataclass
class Link:
    """A connection to a server, at `port`. breaks: whether it breaks in the body of a request, by method and path.

    broken: set when it has. While `away`, nobody answers.
    """

    target: int
    breaks: Callable[[str, str], bool] = lambda method, path: False
    away: bool = False
    port: int = 0
    broken: threading.Event = field(default_factory=threading.Event)

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, sink, watched in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._copy, args=(source, sink, watched), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, watched: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                request = _REQUEST.match(data) if watched else None
                if self.away or (request and self.breaks(request[1].decode(), request[2].decode())):
                    if not self.away:
                        sink.sendall(data[: (data.find(b"\r\n\r\n") + 4 + len(data)) // 2])  # half of what is there
                        self.broken.set()
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def link_to(port: int) -> Iterator[Link]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link(port, port=listener.getsockname()[1])
        threading.Thread(target=link._serve, args=(listener,), daemon=True).start()
        yield link
        listener.shutdown(socket.SHUT_RDWR)
