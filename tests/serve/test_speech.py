"""OpenAI's endpoint, called by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator

import av
import httpx2
import numpy as np
import openai
import pytest
from helpers.audio import write_tone
from helpers.serving import RunningServer, running_server

from csm_cli.audio.stream_encoders import wav_header
from csm_cli.audio.tempo import TempoChanger
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.context import MODEL_ALIASES
from csm_cli.types import GenerationOptions

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
SPEECH = {"model": "tts-1", "input": "Hello there.", "voice": "ash", "seed": 7}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def decoded(data: bytes, name: str) -> np.ndarray:
    """Mono samples at the file's own rate."""
    if name == "pcm":
        return np.frombuffer(data, "<i2") / 32768
    if name == "wav":
        return np.frombuffer(data[44:], "<i2") / 32768
    with av.open(io.BytesIO(data)) as file:
        return np.concatenate([frame.to_ndarray().astype(float).ravel() for frame in file.decode(audio=0)])


def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_tone(tmp_path_factory.mktemp("clip") / "tone.wav")
    return base64.b64encode(path.read_bytes()).decode()


def test_openai_gets_a_whole_file(client: openai.OpenAI) -> None:
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello there.", response_format="wav")
    assert len(decoded(speech.content, "wav")) == round(0.8 * 24000)
    assert speech.response.headers["x-sample-rate"] == "24000"


def test_openai_gets_chunks_while_they_are_made(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="nova", input="Hello there.", response_format="pcm", instructions="Be kind."
    ) as response:
        chunks = list(response.iter_bytes())
        assert "instructions" in response.headers["x-csm-ignored"]
    assert len(chunks) > 1 and len(b"".join(chunks)) == 2 * round(0.8 * 24000)


def test_openai_gets_server_sent_events(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input="Hello there.", response_format="pcm", stream_format="sse"
    ) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    samples = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert len(samples) == 2 * round(0.8 * 24000)
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["output_tokens"] == 10


def test_openai_lists_models_and_gets_its_own_errors(client: openai.OpenAI) -> None:
    assert set(MODEL_ALIASES) <= {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    assert missing.value.code == "voice_not_found" and missing.value.param == "voice"
    with pytest.raises(openai.BadRequestError) as other:
        client.audio.speech.create(model="gpt-9", voice="ash", input="Hello.")
    assert other.value.param == "model"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stream", [True, False])
def test_every_format_holds_the_same_seconds(server: RunningServer, name: str, stream: bool) -> None:
    response = server.http.post("/v1/audio/speech", json=SPEECH | {"response_format": name, "stream": stream})
    assert response.status_code == 200
    rate = 48000 if name == "opus" else 24000
    samples = decoded(response.content, "file" if name == "wav" and not stream else name)
    assert abs(len(samples) / rate - 0.8) < 0.15
    if not stream:
        assert response.headers["x-csm-seed"] == "7" and response.headers["x-csm-stop"] == "cap"


def test_the_same_seed_gives_the_same_audio_streamed_or_whole(server: RunningServer) -> None:
    bodies = [SPEECH | {"response_format": "pcm", "stream": stream} for stream in (True, True, False)]
    first, second, whole = (server.http.post("/v1/audio/speech", json=body).content for body in bodies)
    assert first == second == whole


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_changes_the_duration(server: RunningServer, speed: float) -> None:
    response = server.http.post("/v1/audio/speech", json=SPEECH | {"response_format": "pcm", "speed": speed})
    assert abs(len(response.content) / 48000 - 0.8 / speed) < 0.06


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.0, 1.3, 4.0])
def test_tempo_keeps_pitch_and_level_however_it_is_cut(speed: float) -> None:
    tone = (0.3 * np.sin(np.arange(48000) * 2 * np.pi * 200 / 24000)).astype(np.float32)
    results = []
    for size in (1920, 7000):
        changer = TempoChanger(24000, speed)
        parts = [changer.push(tone[start : start + size]) for start in range(0, len(tone), size)]
        results.append(np.concatenate([*parts, changer.finish()]))
    np.testing.assert_array_equal(results[0], results[1])
    spectrum = np.abs(np.fft.rfft(results[0]))
    assert abs(np.argmax(spectrum) * 24000 / len(results[0]) - 200) < 5
    assert abs(len(results[0]) / 24000 - 2 / speed) < 0.06 and np.abs(results[0]).max() < 0.31


def test_a_clip_gives_the_voice_and_context_changes_the_speech(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tone = clip(tmp_path_factory)
    plain = SPEECH | {"response_format": "pcm", "temperature": 0.9}
    plain.pop("voice")
    audio = {
        server.http.post("/v1/audio/speech", json=plain | more).content
        for more in (
            {},
            {"ref_audio": tone, "ref_text": "La la."},
            {"ref_audio": f"data:audio/wav;base64,{tone}", "ref_text": "La la."},
            {"context": [{"speaker": 1, "text": "La la.", "audio": tone}]},
        )
    }
    assert len(audio) == 3  # base64 and a data: URL are the same clip


BAD = [
    ({"input": ""}, "input"),
    ({"input": " \n"}, "input"),
    ({"input": "x" * 20_001}, "input"),
    ({"input": "a\u0007b"}, "input"),
    ({"input": "\ud800"}, None),
    ({"response_format": "exe"}, "response_format"),
    ({"speed": 9}, "speed"),
    ({"temperature": -1}, "temperature"),
    ({"max_duration": 1e9}, "max_duration"),
    ({"seed": -4}, "seed"),
    ({"voice": {"id": "nobody"}}, "voice"),
    ({"voice": "../../etc/passwd"}, "voice"),
    ({"voice": None, "ref_audio": "/etc/passwd", "ref_text": "x"}, "ref_audio"),
    ({"voice": None, "ref_audio": "http://127.0.0.1:9/a.wav", "ref_text": "x"}, "ref_audio"),
    ({"voice": None, "ref_audio": "file:///etc/passwd", "ref_text": "x"}, "ref_audio"),
    ({"voice": None, "ref_audio": "AAAA", "ref_text": "x"}, "ref_audio"),
    ({"voice": None, "ref_audio": "AAAA"}, None),
    ({"context": [{"text": "x", "audio": "AAAA", "path": "/etc/passwd"}]}, "context.0"),
]


@pytest.mark.parametrize(("change", "param"), BAD)
def test_a_bad_request_names_its_field_and_no_path(
    server: RunningServer, change: dict[str, object], param: str | None
) -> None:
    data = json.dumps(SPEECH | change)
    response = server.http.post("/v1/audio/speech", content=data, headers={"content-type": "application/json"})
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert param is None or error["param"] == param
    assert "/work" not in response.text and "/root" not in response.text and "/tmp" not in response.text


def test_a_long_clip_is_refused_by_its_header(server: RunningServer) -> None:
    silence = wav_header(8000, 8000 * 61) + bytes(2 * 8000 * 61)
    body = SPEECH | {"voice": None, "ref_audio": base64.b64encode(silence).decode(), "ref_text": "Nothing."}
    response = server.http.post("/v1/audio/speech", json=body)
    assert response.status_code == 400 and "60 s" in response.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_slot(synth: Synthesizer) -> None:
    with running_server(synth, flags=GenerationOptions(max_duration=20.0)) as server:
        body = json.dumps(SPEECH | {"response_format": "pcm"}).encode()
        for stream in (b"true", b"false"):
            request = body[:-1] + b', "stream": ' + stream + b"}"
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {server.url[7:]}\r\nContent-Type: application/json\r\n"
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
                connection.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
                if stream == b"true":
                    assert connection.recv(4096)
                else:
                    server.wait_until_busy()
            server.wait_until_idle()
        assert server.service.metrics.cancelled._value.get() == 2


def test_overload_is_refused_with_503_and_a_time(synth: Synthesizer) -> None:
    with (
        running_server(synth, max_queue=0, flags=GenerationOptions(max_duration=20.0)) as server,
        httpx2.Client(base_url=server.url) as other,
    ):
        streams = [other.stream("POST", "/v1/audio/speech", json=SPEECH) for _ in range(4)]
        for each in streams:
            assert each.__enter__().status_code == 200
        refused = server.http.post("/v1/audio/speech", json=SPEECH)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "server_busy"
        for each in streams:
            each.__exit__(None, None, None)
        server.wait_until_idle()


def test_a_deadline_is_503(synth: Synthesizer) -> None:
    with running_server(synth, deadline=0.05, flags=GenerationOptions(max_duration=20.0)) as server:
        response = server.http.post("/v1/audio/speech", json=SPEECH | {"stream": False})
        assert response.status_code == 503 and response.json()["error"]["code"] == "deadline_exceeded"


def test_a_body_without_its_content_type_names_the_header(server: RunningServer) -> None:
    answer = server.http.post("/v1/audio/speech", content=b'{"input": "Hi."}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]


def pcm(server: RunningServer, text: str) -> bytes:
    answer = server.http.post("/v1/audio/speech", json={**SPEECH, "input": text, "response_format": "pcm"})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_pause_is_as_long_as_the_text_says(server: RunningServer) -> None:
    short, long = (pcm(server, f"Hello. [pause {seconds}] Bye.") for seconds in (0.5, 1.25))
    assert len(long) - len(short) == 2 * round(0.75 * 24000)
    refused = server.http.post("/v1/audio/speech", json={**SPEECH, "input": "Hello. [pause 500] Bye."})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input"


def test_the_lexicon_of_the_server_spells_words(synth: Synthesizer, server: RunningServer) -> None:
    with running_server(synth, lexicon={"Nguyen": "Win"}) as spelling:
        assert pcm(spelling, "Hello, Nguyen.") == pcm(server, "Hello, Win.") != pcm(server, "Hello, Nguyen.")
