"""A server as a process: SIGTERM under load, and clients that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from csm_cli.bench.load import Line, started_server

pytestmark = pytest.mark.slow
CLIENT = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"content-type": "application/json"})
response = urllib.request.urlopen(request)
response.read(4800)
print("begun", flush=True)
response.read()
"""
SERVE = ["csm_cli", "serve", "--port", "0", "--json", "--batch-size", "4", "--max-queue", "4"]
LINES = [Line(f"This is line number {number} of a few that are spoken together.", number) for number in range(1, 9)]


def test_sigterm_finishes_what_runs_and_refuses_what_comes() -> None:
    with started_server(SERVE) as server, ThreadPoolExecutor(len(LINES)) as pool:
        whole = [server.speak(line) for line in LINES[:2]]
        running = [pool.submit(server.speak, line) for line in LINES]
        while server.metric("csm_slots_busy") < 4:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.2)
        late = server.speak(Line("Too late.", 1))
        replies = [each.result() for each in running]
        assert [reply.status for reply in replies] == [200] * len(LINES) and late.status != 200
        assert [reply.audio for reply in replies[:2]] == [reply.audio for reply in whole]


def test_sigterm_finishes_the_sentence_of_a_text_stream() -> None:
    with (
        started_server(SERVE) as server,
        connect(f"ws://{server.host}:{server.port}/v1/audio/speech/stream") as socket,
        connect(f"ws://{server.host}:{server.port}/v1/audio/speech/stream") as idle,
    ):
        socket.send(json.dumps({"type": "input.text", "text": f"{LINES[0].text}\n\n{LINES[1].text}\n\n"}))
        events = [json.loads(socket.recv(timeout=30))]
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            while True:
                message = socket.recv(timeout=30)
                events += [json.loads(message)] if isinstance(message, str) else []
        with pytest.raises(ConnectionClosed):
            idle.recv(timeout=30)
    assert [event["type"] for event in events[:2]] == ["audio.start", "audio.done"] and not events[1]["error"]
    assert not [event for event in events[2:] if event["type"] != "error"]


def test_a_killed_client_frees_its_slot() -> None:
    body = '{"input": "' + "A long line that goes on and on. " * 20 + '", "response_format": "pcm"}'
    with started_server(SERVE) as server:
        url = f"http://{server.host}:{server.port}/v1/audio/speech"
        client = subprocess.Popen([sys.executable, "-c", CLIENT, url, body], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        assert server.metric("csm_slots_busy") == 1
        client.kill()
        client.wait()
        client.stdout.close()
        assert server.wait_until_idle(10)
        assert server.metric("csm_requests_cancelled_total") == 1
