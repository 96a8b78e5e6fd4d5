"""Health, metrics, access and voices of the server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.audio import write_tone
from helpers.serving import RunningServer, running_server

import csm_cli.serve.voices
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.limits import MAX_BODY_BYTES

SPEECH = {"model": "tts-1", "input": "Hello there.", "voice": "ash"}


@pytest.fixture(scope="module")
def locked(synth: Synthesizer) -> Iterator[RunningServer]:
    with running_server(synth, api_key="secret", allowed_hosts=("127.0.0.1", "localhost")) as running:
        yield running


def test_probes_and_metrics(server: RunningServer) -> None:
    assert [server.http.get(path).text for path in ("/health", "/livez", "/readyz")] == ["OK"] * 3
    server.http.post("/v1/audio/speech", json=SPEECH)
    names = server.http.get("/metrics").text
    for name in ("csm_queue_length", "csm_slots_busy", "csm_time_to_first_audio_seconds_count", "csm_underruns_total"):
        assert f"\n{name} " in names


def test_a_server_that_stops_is_not_ready(synth: Synthesizer) -> None:
    with running_server(synth) as server:
        server.service.drain()
        assert server.http.get("/readyz").status_code == 503 and server.http.get("/livez").status_code == 200
        assert server.http.post("/v1/audio/speech", json=SPEECH).status_code == 503


@pytest.mark.parametrize("key", [None, "Bearer", "Bearer wrong", "Basic secret", "Bearer secret2", "Bearer sécret"])
def test_without_the_key_nothing_is_answered(locked: RunningServer, key: str | None) -> None:
    headers = {"authorization": key.encode()} if key else {}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/audio/speech"), ("GET", "/metrics"), ("GET", "/docs")):
        response = locked.http.request(method, path, headers=headers)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert locked.http.get("/health").status_code == 200


def test_the_key_opens(locked: RunningServer) -> None:
    assert locked.http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"host": ""}]
)
def test_pages_of_other_sites_are_refused(locked: RunningServer, headers: dict[str, str]) -> None:
    key = {"authorization": "Bearer secret"}
    response = locked.http.get("/v1/models", headers=key | headers)
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers


def test_a_page_of_the_server_itself_may_call_it(locked: RunningServer) -> None:
    headers = {"authorization": "Bearer secret", "origin": locked.url}
    assert locked.http.get("/v1/models", headers=headers).status_code == 200


def test_a_body_that_is_too_large_is_refused(server: RunningServer) -> None:
    def answer(head: str, body: Iterator[bytes]) -> bytes:
        address = "127.0.0.1", int(server.url.rpartition(":")[2])
        with socket.create_connection(address, timeout=10) as connection:
            start = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n\r\n"
            connection.sendall(start.encode())
            with suppress(OSError):  # closed while there is more to send
                for part in body:
                    connection.sendall(part)
            with suppress(OSError):
                return connection.recv(100)
        return b""

    assert b" 413 " in answer(f"Content-Length: {MAX_BODY_BYTES + 1}", iter(()))
    chunk = b"f4240\r\n" + b" " * 1_000_000 + b"\r\n"
    chunked = answer("Transfer-Encoding: chunked", (chunk for _ in range(MAX_BODY_BYTES // 1_000_000 + 2)))
    assert b" 413 " in chunked or not chunked


def test_voices_can_be_uploaded_used_and_removed(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csm_cli.serve.voices, "prepare_clip", lambda audio, text: (audio, []))  # has its own tests
    clip = write_tone(tmp_path / "clip.wav", seconds=2.0).read_bytes()
    fields = {"name": "mine", "text": "La la la la.", "consent": "recorded by me, for tests"}
    added = server.http.post("/v1/audio/voices", data=fields, files={"audio": ("clip.wav", clip)})
    assert added.status_code == 201 and added.json()["license"] == fields["consent"]
    again = server.http.post("/v1/audio/voices", data=fields, files={"audio": ("clip.wav", clip)})
    assert again.status_code == 409
    assert {"id": "mine", "name": "mine"} in server.http.get("/v1/audio/voices").json()["voices"]
    assert server.http.post("/v1/audio/speech", json=SPEECH | {"voice": "mine"}).status_code == 200
    assert server.http.delete("/v1/audio/voices/mine").json()["deleted"]
    assert server.http.delete("/v1/audio/voices/mine").status_code == 404
    assert server.http.delete("/v1/audio/voices/ash").status_code == 409


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"name": "../mine"}, 400),
        ({"name": "ash"}, 409),
        ({"consent": " "}, 400),
        ({"text": ""}, 400),
        ({"audio": b"not audio"}, 400),
        ({"audio": b""}, 400),
    ],
)
def test_an_unusable_upload_saves_nothing(
    server: RunningServer, tmp_path: Path, home: Path, change: dict[str, object], status: int
) -> None:
    clip = write_tone(tmp_path / "clip.wav", seconds=2.0).read_bytes()
    fields = {"name": "mine", "text": "La la la la.", "consent": "me"} | change
    audio = fields.pop("audio", clip)
    response = server.http.post("/v1/audio/voices", data=fields, files={"audio": ("clip.wav", audio)})
    assert response.status_code == status and str(home) not in response.text
    assert not list(home.rglob("*.flac"))


def test_other_ways_are_errors_in_the_same_form(server: RunningServer) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("GET", "/v1/models/x", 404),
    ):
        response = server.http.request(method, path)
        assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}
