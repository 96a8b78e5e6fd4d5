"""Text streamed in over a WebSocket, sentence by sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from helpers.serving import RunningServer, running_server
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import csm_cli.serve.speech_socket
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.types import GenerationOptions

CONFIG = {"type": "session.config", "voice": "ash", "seed": 3, "temperature": 0.9, "top_k": 20, "max_duration": 0.8}
DONE = {"type": "input.done"}


@contextmanager
def opened(server: RunningServer, **connection: Any) -> Iterator[ClientConnection]:
    with connect(f"ws{server.url[4:]}/v1/audio/speech/stream", **connection) as socket:
        yield socket


def send(socket: ClientConnection, *messages: dict[str, Any] | str) -> None:
    for message in messages:
        socket.send(json.dumps({"type": "input.text", "text": message} if isinstance(message, str) else message))


def receive(socket: ClientConnection, last: str) -> list[Any]:
    """Events and frames up to the event of this type."""
    got: list[Any] = []
    while not (got and isinstance(got[-1], dict) and got[-1]["type"] == last):
        message = socket.recv(timeout=30)
        got.append(json.loads(message) if isinstance(message, str) else message)
    return got


def spoken(server: RunningServer, *pieces: str, **config: Any) -> list[bytes]:
    """The audio of each sentence."""
    with opened(server) as socket:
        send(socket, CONFIG | config, *pieces, DONE)
        audio: list[bytes] = []
        for message in receive(socket, "session.done"):
            if isinstance(message, bytes):
                audio[-1] += message
            elif message["type"] == "audio.start":
                audio.append(b"")
        return audio


def test_a_sentence_is_spoken_before_the_text_ends(server: RunningServer) -> None:
    with opened(server) as socket:
        send(socket, CONFIG, "Hello", " there. How are ")
        first = receive(socket, "audio.done")
        assert first[0] == {
            "type": "audio.start",
            "sentence_index": 0,
            "sentence_text": "Hello there.",
            "format": "pcm",
            "sample_rate": 24000,
        }
        frames = [each for each in first if isinstance(each, bytes)]
        assert len(frames) > 1 and sum(map(len, frames)) == first[-1]["total_bytes"] == 2 * round(0.8 * 24000)
        send(socket, "you?", DONE)
        rest = receive(socket, "session.done")
        assert rest[0]["sentence_text"] == "How are you?" and rest[-1]["total_sentences"] == 2


def test_sentences_are_one_conversation_and_do_not_depend_on_the_pieces(server: RunningServer) -> None:
    whole = spoken(server, "Hello there. How are you? Fine.")
    assert spoken(server, *"Hello there. How are you? Fine.") == whole and len(whole) == 3
    assert spoken(server, "How are you?", seed=4) != [whole[1]]
    conversation = server.http.post("/v1/conversations", json={"speakers": {"0": {"voice": "ash"}}}).json()["id"]
    options = {name: CONFIG[name] for name in ("temperature", "top_k", "max_duration")} | {"response_format": "pcm"}
    for number, sentence in enumerate(("Hello there.", "How are you?", "Fine.")):
        body = options | {"input": sentence, "seed": 3 + number}
        assert server.http.post(f"/v1/conversations/{conversation}/turns", json=body).content == whole[number]


@pytest.mark.parametrize(("name", "start"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("mp3", b"ID3"), ("opus", b"OggS")])
def test_files_are_one_frame_each(server: RunningServer, name: str, start: bytes) -> None:
    with opened(server) as socket:
        send(socket, CONFIG | {"response_format": name}, "One. Two.", DONE)
        frames = [each for each in receive(socket, "session.done") if isinstance(each, bytes)]
    assert len(frames) == 2 and all(frame.startswith(start) for frame in frames)
    assert len(spoken(server, "One.", response_format=name, stream_audio=True)) == 1


def test_a_socket_speaks_more_after_its_text_is_done(server: RunningServer) -> None:
    with opened(server) as socket:
        send(socket, CONFIG, "One.", DONE)
        assert receive(socket, "session.done")[-1]["total_sentences"] == 1
        send(socket, "Two.", DONE)
        assert receive(socket, "session.done")[0]["sentence_index"] == 0
        send(socket, DONE)
        assert receive(socket, "session.done") == [{"type": "session.done", "total_sentences": 0}]


BAD = [
    ("no json", "message"),
    (b"\x00", "message"),
    ("[" * 100_000, "message"),
    ("[]", None),
    ('{"type": "input.audio"}', None),
    ('{"type": "input.text"}', None),
    (json.dumps({"type": "input.text", "text": "x" * 20_001}), None),
    (json.dumps(CONFIG | {"response_format": "exe"}), None),
    (json.dumps(CONFIG | {"voice": "nobody"}), "voice"),
    (json.dumps(CONFIG | {"voice": "../../etc/passwd"}), "voice"),
    (json.dumps(CONFIG | {"voice": None, "ref_audio": "/etc/passwd", "ref_text": "x"}), "ref_audio"),
    (json.dumps(CONFIG | {"model": "gpt-9"}), "model"),
]


@pytest.mark.parametrize(("message", "param"), BAD)
def test_a_bad_message_is_an_error_and_the_session_goes_on(
    server: RunningServer, message: str | bytes, param: str | None
) -> None:
    with opened(server) as socket:
        socket.send(message)
        (error,) = receive(socket, "error")
        assert error["message"] == error["error"]["message"]
        assert param is None or error["error"]["param"] == param
        send(socket, CONFIG, "One.", DONE)
        assert receive(socket, "session.done")[-1]["total_sentences"] == 1


def test_a_sentence_that_cannot_be_spoken_is_an_error_of_its_own(server: RunningServer) -> None:
    with opened(server) as socket:
        send(socket, CONFIG, "One.\n\nA bell: \u0007.\n\nThree.", DONE)
        events = [each for each in receive(socket, "session.done") if isinstance(each, dict)]
    kinds = [each["type"] for each in events]
    assert kinds == ["audio.start", "audio.done", "error", "audio.start", "audio.done", "session.done"]
    assert events[-1]["total_sentences"] == 3


def test_too_much_text_that_waits_is_refused(server: RunningServer) -> None:
    with opened(server) as socket:
        send(socket, CONFIG | {"max_duration": 10}, "And so on. " * 1500, "And so on. " * 1500)
        error = receive(socket, "error")[-1]
        assert "20,000" in error["message"]
    server.wait_until_idle()


def test_a_socket_that_closes_ends_what_is_spoken(synth: Synthesizer) -> None:
    with running_server(synth, flags=GenerationOptions(max_duration=20.0)) as server:
        with opened(server) as socket:
            send(socket, CONFIG | {"max_duration": 20}, "A long one. And more of it. ")
            assert isinstance(receive(socket, "audio.start")[-1], dict) and socket.recv(timeout=30)
        server.wait_until_idle()
        assert server.service.metrics.cancelled._value.get() == 1
        assert "\ncsm_text_streams 0.0" in server.http.get("/metrics").text


def test_an_idle_socket_is_closed(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csm_cli.serve.speech_socket, "SOCKET_IDLE_SECONDS", 0.3)
    with opened(server) as socket:
        assert receive(socket, "error")[-1]["error"]["code"] == "invalid_value"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


def test_a_full_queue_refuses_the_first_sentence_and_delays_later_ones(synth: Synthesizer) -> None:
    with running_server(synth, max_queue=0) as server, opened(server) as socket:
        send(socket, CONFIG, "One.", DONE)
        receive(socket, "session.done")
        body = {"input": "A long one.", "max_duration": 3.0, "response_format": "pcm"}
        streams = [server.http.stream("POST", "/v1/audio/speech", json=body) for _ in range(4)]
        for stream in streams:
            stream.__enter__()
        with opened(server) as refused:
            send(refused, CONFIG, "One.", DONE)
            assert receive(refused, "error")[-1]["error"]["code"] == "server_busy"
        send(socket, "Two.", DONE)
        time.sleep(0.3)
        for stream in streams:
            stream.__exit__(None, None, None)
        assert receive(socket, "session.done")[-1]["total_sentences"] == 1
        server.wait_until_idle()


def test_pages_of_other_sites_and_clients_without_the_key_cannot_connect(synth: Synthesizer) -> None:
    with running_server(synth, api_key="secret") as server:
        key = {"Authorization": "Bearer secret"}
        for refused in ({}, {"additional_headers": key, "origin": "https://evil.example"}):
            with pytest.raises(InvalidStatus) as status, opened(server, **refused):
                pass
            assert status.value.response.status_code == 403
        with opened(server, additional_headers=key) as socket:
            send(socket, CONFIG, "One.", DONE)
            assert receive(socket, "session.done")


def test_speed_changes_the_duration(server: RunningServer) -> None:
    (fast,) = spoken(server, "Hello there.", speed=2.0)
    assert abs(len(np.frombuffer(fast, "<i2")) / 24000 - 0.4) < 0.06
