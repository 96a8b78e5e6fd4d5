"""Clients that put a speech server under load: what each of them gets, and when."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from csm_cli.errors import CsmError

_BYTES_PER_SECOND = 2 * 24_000  # pcm: 16 bits, mono; every CSM codec has this rate
_READ_BYTES = 1 << 16
_TIMEOUT = 600.0
_CONNECTION_LOST = 0  # the status of a reply that broke off


@dataclass(frozen=True)
class Line:
    """A text to speak with a seed."""

    text: str
    seed: int


@dataclass(frozen=True)
class Reply:
    """What one client got.

    status: of HTTP. first_audio: seconds from the request to the first samples. audio: seconds of it. underruns: how
    often a player that starts at once would have run dry.
    """

    status: int
    first_audio: float = 0.0
    audio: float = 0.0
    underruns: int = 0


@dataclass(frozen=True)
class SpeechServer:
    """A server in a process of its own."""

    host: str
    port: int
    pid: int

    def speak(self, line: Line, max_bytes: float = float("inf"), reset: bool = False) -> Reply:
        """One request over a connection of its own.

        max_bytes: the client leaves when it has so many. reset: it does so without closing the connection properly,
        as one that was killed.
        """
        body = json.dumps({"input": line.text, "seed": line.seed, "response_format": "pcm"})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)
        sent = time.perf_counter()
        try:
            connection.request("POST", "/v1/audio/speech", body, {"content-type": "application/json"})
            if reset and connection.sock:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if not max_bytes:
                return Reply(_CONNECTION_LOST)
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return Reply(response.status)
            first = runs_dry = 0.0
            received = underruns = 0
            while received < max_bytes and (data := response.read1(_READ_BYTES)):
                now = time.perf_counter()
                first = first or now - sent
                if received and now > runs_dry:
                    underruns += 1
                runs_dry = max(runs_dry, now) + len(data) / _BYTES_PER_SECOND
                received += len(data)
            return Reply(200, first, received / _BYTES_PER_SECOND, underruns)
        except (OSError, http.client.HTTPException):
            return Reply(_CONNECTION_LOST)
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of a page."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """The values of /metrics that have no labels."""
        lines = [line.split() for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines if "{" not in name}

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        return self.metrics()[name]

    def wait_until_idle(self, seconds: float = 60.0) -> bool:
        """Whether every slot and the queue become empty in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.metric("csm_slots_busy") and not self.metric("csm_queue_length"):
                return True
            time.sleep(0.05)
        return False

    @property
    def resident_mb(self) -> float:
        """The memory of the process."""
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True)
        return int(shown.stdout) / 1024


@contextmanager
def started_server(arguments: Sequence[str]) -> Iterator[SpeechServer]:
    """`python -m` with these arguments, which prints its URL and process as a JSON line; ends with the context.

    Raises:
        CsmError: it ended before it was ready.
    """
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            if not announced:
                errors.seek(0)
                raise CsmError(f"{arguments[0]} did not start: {(errors.read().strip().splitlines() or ['?'])[-1]}")
            started = json.loads(announced)
            address = urlsplit(started["url"])
            server = SpeechServer(address.hostname or "", address.port or 0, started["pid"])
            while server.get("/readyz")[0] != 200:
                if process.poll() is not None:
                    raise CsmError(f"{arguments[0]} ended before it was ready")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


def run_clients(clients: int, lines: Iterable[Line], ask: Callable[[Line], Reply]) -> tuple[list[Reply], float]:
    """The replies to all lines, and the seconds until the last. Each client sends its next line after a reply."""
    waiting, lock, replies = iter(lines), Lock(), list[Reply]()

    def next_line() -> Line | None:
        with lock:
            return next(waiting, None)

    def client() -> None:
        while line := next_line():
            replies.append(ask(line))

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for each in [pool.submit(client) for _ in range(clients)]:
            each.result()
    return replies, time.perf_counter() - start


def load_figures(server: SpeechServer, clients: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Clients that send one line after the other: seconds to first audio, audio per second, late streams, memory."""
    replies, seconds = run_clients(clients, lines, server.speak)
    spoken = [each for each in replies if each.status == 200]
    if not spoken:
        raise CsmError(f"no request was answered; the first got status {replies[0].status}")
    first = [each.first_audio for each in spoken]
    return {
        "clients": clients,
        "requests": len(replies),
        "failed": len(replies) - len(spoken),
        "first_audio_p50": median(first),
        "first_audio_p95": quantiles(first, n=20)[-1] if len(first) > 1 else first[0],
        "audio_s_per_s": sum(each.audio for each in spoken) / seconds,
        "underruns": sum(each.underruns for each in spoken),
        "streams_with_underruns": sum(each.underruns > 0 for each in spoken),
        "server_mb": server.resident_mb,
    }


def overload_figures(server: SpeechServer, clients: int, lines: Sequence[Line]) -> dict[str, Any]:
    """So many clients at once, one line each: how many were refused, and whether otherwise than with 503."""
    before, most = server.resident_mb, 0.0
    limit = server.metric("csm_queue_limit") + server.metric("csm_slots")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_clients, clients, lines, server.speak)
        while not running.done():
            now = server.metrics()
            most = max(most, now["csm_queue_length"] + now["csm_slots_busy"])
            time.sleep(0.1)
        replies, _ = running.result()
    return {
        "overload_clients": clients,
        "overload_answered": sum(each.status == 200 for each in replies),
        "overload_refused_503": sum(each.status == 503 for each in replies),
        "overload_other": sum(each.status not in (200, 503) for each in replies),
        "overload_accepted_at_once": most,
        "overload_limit": limit,
        "overload_added_mb": server.resident_mb - before,
    }


def disconnect_figures(server: SpeechServer, clients: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Clients of which three in four leave at a random time, half of them as if killed: slots and memory afterwards."""
    draw, lock, halves = random.Random(1), Lock(), (lines[: len(lines) // 2], lines[len(lines) // 2 :])

    def ask(line: Line) -> Reply:
        with lock:
            leaves, at, reset = draw.random() < 0.75, draw.randrange(0, 120_000), draw.random() < 0.5
        return server.speak(line, max(0, at - 20_000) if leaves else float("inf"), reset)

    cancelled, megabytes, replies = server.metric("csm_requests_cancelled_total"), [], list[Reply]()
    for half in halves:
        replies += run_clients(clients, half, ask)[0]
        free = server.wait_until_idle()
        megabytes.append(server.resident_mb)
    return {
        "disconnects_requests": len(replies),
        "disconnects_left": server.metric("csm_requests_cancelled_total") - cancelled,
        "disconnects_slots_lost": 0 if free else server.metric("csm_slots_busy"),
        "disconnects_mb_first_half": megabytes[0],
        "disconnects_mb_second_half": megabytes[1],
    }
