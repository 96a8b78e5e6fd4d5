"""Other programs that call the server: pipecat, livekit, Open WebUI, wyoming-openai, and a fuzzer of its schema.

The programs are installed by `make clients`, in an environment of their own, since their pins contradict ours. Those
that are no packages are replayed: the calls that their code makes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import RunningServer, running_server

from csm_cli.generation.synthesizer import Synthesizer

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "runs" / "clients" / "bin"
needs_clients = pytest.mark.skipif(not CLIENTS.exists(), reason="the clients are not installed: make clients")
SECONDS = 0.8  # of audio that the tiny model speaks


def run(*command: object) -> str:
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=200, cwd=CLIENTS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def client(name: str, server: RunningServer) -> Any:
    return json.loads(run(CLIENTS / "python", ROOT / "tests" / "serve" / "clients" / f"{name}.py", server.url))


@pytest.mark.slow
@needs_clients
def test_pipecat_speaks_in_a_pipeline(server: RunningServer) -> None:
    spoken = client("pipecat_speech", server)
    assert spoken["errors"] == [] and spoken["rates"] == [24000]
    assert spoken["seconds"] == pytest.approx(SECONDS)


@pytest.mark.slow
@needs_clients
def test_livekit_speaks_in_every_format(server: RunningServer) -> None:
    spoken = client("livekit_speech", server)
    assert len(spoken) == 10
    for name, got in spoken.items():
        # mp3 and opus begin and end with silence; livekit's decoder leaves out the last block of any FLAC file
        padding = 0.1 if name.endswith(("mp3", "opus", "flac")) else 0.02
        assert got["rates"] == [24000] and got["seconds"] == pytest.approx(SECONDS, abs=padding), name


@pytest.fixture
def private_server(synth: Synthesizer, home: Path) -> Iterator[RunningServer]:
    with running_server(synth, max_queue=64, max_conversations=10_000) as running:
        yield running


@pytest.mark.slow
@needs_clients
def test_no_request_that_the_schema_allows_is_a_server_error(private_server: RunningServer) -> None:
    schema = f"{private_server.url}/openapi.json"
    options = "--checks", "not_a_server_error", "--max-examples", "10", "--seed", "1", "--request-timeout", "60"
    report = run(CLIENTS / "schemathesis", "run", schema, *options)
    assert " passed" in report
    assert private_server.http.get("/livez").text == "OK"
    private_server.wait_until_idle()


def test_open_webui_finds_models_and_voices_and_speaks(server: RunningServer) -> None:
    """Its lists are read without a key; each voice is an object with id and name."""
    models = server.http.get("/v1/audio/models").json()["models"]
    voices = {voice["id"]: voice["name"] for voice in server.http.get("/v1/audio/voices").json()["voices"]}
    assert "tts-1" in [model["id"] for model in models] and {"alloy", "ash"} <= voices.keys()
    payload = {"input": "Hello there.", "voice": "alloy", "model": "tts-1"}
    headers = {"Authorization": "Bearer none", "X-OpenWebUI-User-Name": "ann"}
    speech = server.http.post("/v1/audio/speech", json=payload, headers=headers)
    assert speech.status_code == 200 and speech.headers["content-type"] == "audio/mpeg" and len(speech.content) > 1000


def test_wyoming_openai_takes_the_server_for_one_it_knows(server: RunningServer) -> None:
    """It asks for LocalAI's probe below /v1, then for Speaches' /health, and then for the model's voices."""
    assert server.http.get("/v1/readyz").status_code == 404
    assert server.http.get("/health").text == "OK"
    model = server.http.get("/v1/models/tts-1").json()
    assert {"alloy", "ash"} <= {voice["name"] for voice in model["voices"]}
    payload = {
        "model": "tts-1",
        "voice": "ash",
        "input": "Hello there.",
        "response_format": "wav",
        "stream_format": "audio",
    }
    assert server.http.post("/v1/audio/speech", json=payload).content[:4] == b"RIFF"


def test_every_response_has_an_id_of_its_own(server: RunningServer) -> None:
    ids = [server.http.get(path).headers["x-request-id"] for path in ("/health", "/health", "/none")]
    assert len(set(ids)) == 3
