"""Conversations over HTTP: turns with the history before them, takes, recordings and exports."""

from __future__ import annotations

import base64
import io
import json
import socket
import wave
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers.audio import write_tone
from helpers.run import Result
from helpers.serving import RunningServer, running_server

from csm_cli.errors import ServerBusy
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.script import read_script
from csm_cli.serve.conversations import ConversationStore, HeldConversation
from csm_cli.types import GenerationOptions

OPTIONS = {"temperature": 0.9, "top_k": 20, "max_duration": 0.8}
PCM = {"response_format": "pcm"}


def create(server: RunningServer, **body: Any) -> str:
    response = server.http.post("/v1/conversations", json=OPTIONS | {"seed": 5} | body)
    assert response.status_code == 201, response.text
    return f"/v1/conversations/{response.json()['id']}"


def say(server: RunningServer, conversation: str, text: str, **body: Any) -> bytes:
    response = server.http.post(f"{conversation}/turns", json=PCM | {"input": text} | body)
    assert response.status_code == 200, response.text
    return response.content


def turns(server: RunningServer, conversation: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.http.get(conversation).json()["turns"]
    return found


def export(server: RunningServer, conversation: str, name: str) -> bytes:
    response = server.http.get(f"{conversation}/export", params={"format": name})
    assert response.status_code == 200, response.text
    return response.content


def pcm_of(wav: bytes) -> bytes:
    with wave.open(io.BytesIO(wav)) as file:
        return file.readframes(file.getnframes())


@contextmanager
def counted_prefills(synth: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of positions of each prefill."""
    embed, lengths = synth.engine.model.embed_prompt, []

    def counted(tokens: Any) -> Any:
        lengths.append(len(tokens))
        return embed(tokens)

    with monkeypatch.context() as patch:
        patch.setattr(synth.engine.model, "embed_prompt", counted)
        yield lengths


def test_a_turn_continues_those_before_it(server: RunningServer) -> None:
    first, second = create(server), create(server)
    one = say(server, first, "Hello there.", seed=1)
    assert say(server, second, "Something else entirely.", seed=1) != one
    assert say(server, first, "How are you?", seed=2) != say(server, second, "How are you?", seed=2)
    record = server.http.get(first).json()
    assert record["object"] == "conversation" and [each["number"] for each in record["turns"]] == [1, 2]
    assert [each["takes"][0]["seed"] for each in record["turns"]] == [1, 2]
    assert record["turns"][1] | {"id": "", "takes": []} == {
        "id": "",
        "object": "conversation.turn",
        "number": 2,
        "speaker": 0,
        "input": "How are you?",
        "source": "synthesized",
        "gap": 0.25,
        "gain": 0.0,
        "take": 1,
        "takes": [],
        "outdated": False,
    }


def test_the_next_turn_prefills_only_what_is_new(
    server: RunningServer, synth: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the same samples where another client has used the slot meanwhile."""
    conversation, other = create(server, speakers={"0": {"voice": "ash"}}), create(server)
    say(server, conversation, "Hello there.", seed=1)
    text = len(synth.prompt_builder.text_ids(0, "How are you?"))
    with counted_prefills(synth, monkeypatch) as lengths:
        continued = say(server, conversation, "How are you?", seed=2)
    assert lengths == [text + 1]  # and the frame that ends the turn before

    again = create(server, speakers={"0": {"voice": "ash"}})
    say(server, again, "Hello there.", seed=1)
    for slot in synth.engine.slots:  # all of them are used by others
        say(server, other, f"I am another client, and take slot {id(slot)}.")
        slot.prompt, slot.frames = slot.prompt[:0], []
    with counted_prefills(synth, monkeypatch) as lengths:
        assert say(server, again, "How are you?", seed=2) == continued
    assert lengths[0] > text + 10


def test_seeds_follow_one_another_and_the_same_conversation_gives_the_same_samples(server: RunningServer) -> None:
    def spoken() -> list[bytes]:
        conversation = create(server, seed=7)
        return [say(server, conversation, text) for text in ("One.", "Two.", "Three.")]

    first = spoken()
    assert first == spoken() and len(set(first)) == 3


def test_events_end_with_the_turn(server: RunningServer) -> None:
    body = {"input": "Hello.", "stream_format": "sse", "response_format": "pcm"}
    response = server.http.post(f"{create(server)}/turns", json=body)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["turn"]["number"] == 1
    assert response.headers["x-turn-id"] == events[-1]["turn"]["id"]


def test_a_turn_is_inserted_and_moved(server: RunningServer, tmp_path: Path) -> None:
    conversation = create(server)
    for text in ("One.", "Two."):
        say(server, conversation, text)
    inserted = say(server, conversation, "Between.", position=2, seed=3)
    assert [each["input"] for each in turns(server, conversation)] == ["One.", "Between.", "Two."]
    assert [each["outdated"] for each in turns(server, conversation)] == [False, False, True]
    other = create(server)
    say(server, other, "One.")
    assert say(server, other, "Between.", seed=3) == inserted  # spoken in the history before its place
    clip = write_tone(tmp_path / "clip.wav", seconds=1.0).read_bytes()
    fields = {"input": "Zero.", "position": "1"}
    server.http.post(f"{conversation}/turns", data=fields, files={"audio": ("clip.wav", clip)})
    assert [each["input"] for each in turns(server, conversation)] == ["Zero.", "One.", "Between.", "Two."]
    last = turns(server, conversation)[3]
    path = f"{conversation}/turns/{last['id']}"
    assert server.http.patch(path, json={"number": 1}).json()["number"] == 1
    assert [each["input"] for each in turns(server, conversation)] == ["Two.", "Zero.", "One.", "Between."]
    assert server.http.patch(path, json={"number": 5}).status_code == 400
    assert server.http.patch(path, json={"number": 0}).status_code == 400
    body = {"input": "Beyond.", "position": 6}
    assert server.http.post(f"{conversation}/turns", json=body).status_code == 400
    assert len(turns(server, conversation)) == 4


def test_another_take_is_picked_and_outdates_what_follows(server: RunningServer) -> None:
    conversation = create(server)
    first, last = (say(server, conversation, text) for text in ("Hello there.", "How are you?"))
    turn, after = turns(server, conversation)
    path = f"{conversation}/turns/{turn['id']}"
    another = server.http.post(f"{path}/takes", json=PCM).content
    assert another != first
    assert [each["outdated"] for each in turns(server, conversation)] == [False, True]
    assert [each["take"] for each in turns(server, conversation)] == [2, 1]
    assert pcm_of(server.http.get(f"{path}/audio").content) == another
    assert pcm_of(server.http.get(f"{path}/audio", params={"take": 1}).content) == first
    seed = turn["takes"][0]["seed"]
    assert server.http.post(f"{path}/takes", json=PCM | {"seed": seed}).content == first
    picked = server.http.patch(path, json={"take": 1, "gap": 0.5, "gain": -2}).json()
    assert (picked["take"], picked["gap"], picked["gain"], len(picked["takes"])) == (1, 0.5, -2, 3)
    assert not turns(server, conversation)[1]["outdated"]
    seed = after["takes"][0]["seed"]
    redone = server.http.post(f"{conversation}/turns/{after['id']}/takes", json=PCM | {"seed": seed})
    assert redone.content == last


def test_other_words_drop_the_takes_and_a_removed_turn_leaves_the_history(server: RunningServer) -> None:
    conversation = create(server)
    for text in ("One.", "Two.", "Three."):
        say(server, conversation, text)
    one, two, three = turns(server, conversation)
    path = f"{conversation}/turns/{one['id']}"
    assert server.http.patch(path, json={"input": "Uno.", "speaker": 1}).json()["takes"] == []
    assert [each["outdated"] for each in turns(server, conversation)] == [False, True, True]
    assert server.http.get(f"{path}/audio").status_code == 404
    assert server.http.post(f"{path}/takes", json=PCM).status_code == 200
    assert server.http.delete(f"{conversation}/turns/{two['id']}").json()["deleted"]
    assert [each["input"] for each in turns(server, conversation)] == ["Uno.", "Three."]
    assert turns(server, conversation)[1] == three | {"number": 2, "outdated": True}


def test_a_recorded_turn_is_part_of_the_history_and_of_the_track(server: RunningServer, tmp_path: Path) -> None:
    clip = write_tone(tmp_path / "clip.wav", seconds=1.0).read_bytes()
    plain, recorded, form = create(server), create(server), create(server)
    body = {"input": "La la.", "speaker": 1, "audio": base64.b64encode(clip).decode()}
    added = server.http.post(f"{recorded}/turns", json=body)
    assert added.status_code == 201 and added.json()["source"] == "recorded"
    assert added.json()["takes"][0]["seed"] is None and added.json()["takes"][0]["duration"] == 1.0
    sent = server.http.post(
        f"{form}/turns", data={"input": "La la.", "speaker": "1", "gap": "0.5"}, files={"audio": ("x.wav", clip)}
    )
    assert sent.status_code == 201 and sent.json()["gap"] == 0.5
    answers = [say(server, each, "How nice.", seed=3) for each in (plain, recorded, form)]
    assert answers[0] != answers[1] == answers[2]
    track = soundfile.read(io.BytesIO(export(server, recorded, "wav")))[0]
    assert len(track) == 24000 + round(0.25 * 24000) + len(answers[1]) // 2
    path = f"{recorded}/turns/{added.json()['id']}"
    assert server.http.post(f"{path}/takes", json=PCM).status_code == 409
    assert server.http.patch(path, json={"input": "La la la."}).json()["take"] == 1
    assert turns(server, recorded)[1]["outdated"]


def test_the_exported_script_gives_the_same_samples_with_csm_converse(
    server: RunningServer, csm: Callable[..., Result], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    speakers = {"0": {"name": "Ana", "voice": "ash"}, "1": {"name": "Ben: b", "voice": "birch"}}
    conversation = create(server, title="A talk", speakers=speakers)
    say(server, conversation, "Hello there.")
    say(server, conversation, "#Hi, how are you? - 'Fine'", speaker=1, gap=-0.2, gain=-3)
    say(server, conversation, "Good.", temperature=0.7, gap=0)
    first = turns(server, conversation)[0]
    server.http.post(f"{conversation}/turns/{first['id']}/takes", json=PCM)
    server.http.patch(f"{conversation}/turns/{first['id']}", json={"take": 1})
    script = tmp_path / "script.yaml"
    script.write_bytes(export(server, conversation, "yaml"))
    assert csm("check", script).code == 0
    spoken = csm("converse", script, "-o", tmp_path / "out.wav", "--model", tiny_checkpoint, "--no-trim")
    assert spoken.code == 0, spoken.err
    assert pcm_of((tmp_path / "out.wav").read_bytes()) == pcm_of(export(server, conversation, "wav"))
    srt = export(server, conversation, "srt").decode()
    assert "Ana: Hello there." in srt and "Ben: b: #Hi, how are you?" in srt


def test_a_zip_has_all_that_csm_converse_needs(
    server: RunningServer, csm: Callable[..., Result], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    clips = [write_tone(tmp_path / f"{n}.wav", seconds=n, rate=16000).read_bytes() for n in (1.0, 1.5, 2.0)]
    voice, context, recording = (base64.b64encode(clip).decode() for clip in clips)
    conversation = create(
        server,
        speakers={"3": {"name": "../../Ana", "ref_audio": voice, "ref_text": "La."}},
        context=[{"text": "La la.", "audio": context, "speaker": 1}],
    )
    say(server, conversation, "Hello there.", speaker=3)
    body = {"input": "La la la.", "speaker": 1, "audio": recording}
    assert server.http.post(f"{conversation}/turns", json=body).status_code == 201
    say(server, conversation, "How nice.", speaker=3)
    with zipfile.ZipFile(io.BytesIO(export(server, conversation, "zip"))) as archive:
        assert not any(".." in name or name.startswith("/") for name in archive.namelist())
        archive.extractall(tmp_path / "zip")
    spoken = csm(
        "converse", tmp_path / "zip/script.yaml", "-o", tmp_path / "out.wav", "--model", tiny_checkpoint, "--no-trim"
    )
    assert spoken.code == 0, spoken.err
    assert pcm_of((tmp_path / "out.wav").read_bytes()) == pcm_of((tmp_path / "zip/track.wav").read_bytes())


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "srt", "vtt", "yaml", "zip"])
def test_every_export_has_content(server: RunningServer, name: str) -> None:
    conversation = create(server)
    assert server.http.get(f"{conversation}/export", params={"format": name}).status_code == 409
    say(server, conversation, "Hello there.")
    response = server.http.get(f"{conversation}/export", params={"format": name})
    assert len(response.content) > 20 and "conversation." in response.headers["content-disposition"]


def test_any_name_and_text_can_be_read_back_from_the_script(server: RunningServer, tmp_path: Path) -> None:
    names = ["yes", "1.5", "- a", "# x", "é\u4e2d", "a: b", "null", "&a *b", "{x}", "'", '"', "?", "a" * 80]
    speakers = {str(n): {"name": name} for n, name in enumerate(names)}
    conversation = create(server, title="on: #1", speakers=speakers, max_duration=0.1)
    for number, name in enumerate(names):
        say(server, conversation, f"{name} says {name}", speaker=number)
    script = tmp_path / "script.yaml"
    script.write_bytes(export(server, conversation, "yaml"))
    read = read_script(script)
    assert [turn.name for turn in read.turns] == names and read.title == "on: #1"
    assert [turn.text for turn in read.turns] == [f"{name} says {name}" for name in names]


def test_a_changed_voice_outdates_the_turns(server: RunningServer) -> None:
    conversation = create(server, speakers={"0": {"name": "Ana", "voice": "ash"}, "1": {}})
    before = say(server, conversation, "Hello.", seed=1)
    changed = server.http.patch(conversation, json={"title": "T", "speakers": {"0": {"name": "Bea"}, "1": None}})
    assert changed.json()["speakers"] == {"0": {"name": "Bea", "voice": "ash"}} and changed.json()["title"] == "T"
    assert not turns(server, conversation)[0]["outdated"]
    assert server.http.patch(conversation, json={"speakers": {"0": {"voice": "birch"}}}).status_code == 200
    (turn,) = turns(server, conversation)
    assert turn["outdated"]
    again = server.http.post(f"{conversation}/turns/{turn['id']}/takes", json=PCM | {"seed": 1}).content
    assert again != before
    assert server.http.patch(conversation, json={"speakers": {"0": None}}).status_code == 409


def test_one_turn_at_a_time_and_a_client_that_leaves_adds_nothing(synth: Synthesizer) -> None:
    with running_server(synth, flags=GenerationOptions(max_duration=20.0)) as server:
        conversation = create(server, max_duration=20.0)
        body = json.dumps(PCM | {"input": "A long one."}).encode()
        head = f"POST {conversation}/turns HTTP/1.1\r\nHost: {server.url[7:]}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert connection.recv(4096)
            for method, path, json_body in (
                ("POST", "/turns", {"input": "Hi."}),
                ("PATCH", "", {"speakers": {"0": {"name": "x"}}}),
            ):
                response = server.http.request(method, conversation + path, json=json_body)
                assert response.status_code == 409 and response.json()["error"]["code"] == "conflict"
            assert turns(server, conversation) == []
        server.wait_until_idle()
        assert turns(server, conversation) == []
        say(server, conversation, "Short.", max_duration=0.4)
        assert [turn["input"] for turn in turns(server, conversation)] == ["Short."]


def test_a_deleted_conversation_ends_what_is_spoken(synth: Synthesizer) -> None:
    with running_server(synth, flags=GenerationOptions(max_duration=20.0)) as server:
        conversation = create(server, max_duration=20.0)
        sse = {"input": "A long one.", "stream_format": "sse", "response_format": "pcm"}
        with server.http.stream("POST", f"{conversation}/turns", json=sse) as response:
            lines = response.iter_lines()
            next(lines)
            assert server.http.delete(conversation).json()["deleted"]
            last = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
        assert last["type"] == "error" and last["error"]["code"] == "cancelled"
        assert server.http.get(conversation).status_code == 404
        server.wait_until_idle()


BAD_TURNS = [
    ({"input": ""}, "input"),
    ({"input": "..."}, "input"),
    ({"input": "Hi.", "speaker": 1000}, "speaker"),
    ({"input": "Hi.", "gap": 1e9}, "gap"),
    ({"input": "Hi.", "gain": "loud"}, "gain"),
    ({"input": "Hi.", "audio": "/etc/passwd"}, "audio"),
    ({"input": "Hi.", "audio": base64.b64encode(b"RIFF").decode()}, "audio"),
    ({"input": "Hi.", "response_format": "exe"}, "response_format"),
    ({}, "input"),
    ([], "body"),
]


@pytest.mark.parametrize(("body", "param"), BAD_TURNS)
def test_a_bad_turn_names_its_field_and_is_not_added(server: RunningServer, body: Any, param: str) -> None:
    conversation = create(server)
    response = server.http.post(f"{conversation}/turns", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert turns(server, conversation) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": NaN}', b'{"input": "\\ud800"}'])
def test_a_body_that_is_no_json_is_refused(server: RunningServer, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert server.http.post(f"{create(server)}/turns", content=content, headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"speakers": {"0": {"voice": "nobody"}}}, 404),
        ({"speakers": {"0": {"voice": "../ash"}}}, 404),
        ({"speakers": {"0": {"ref_audio": "AAAA"}}}, 400),
        ({"speakers": {"0": {"name": "a"}, "1": {"name": "a"}}}, 400),
        ({"speakers": {"0": {"name": "text"}}}, 400),
        ({"speakers": {"0": {"name": "\u0007"}}}, 400),
        ({"speakers": {"0": {"name": "a" * 81}}}, 400),
        ({"speakers": {"-1": {}}}, 400),
        ({"speakers": {str(n): {} for n in range(33)}}, 400),
        ({"title": "\u0007"}, 400),
        ({"title": "t" * 201}, 400),
        ({"path": "/etc/passwd"}, 400),
        ({"context": [{"text": "x", "audio": "file:///etc/passwd"}]}, 400),
    ],
)
def test_a_bad_conversation_is_not_created(server: RunningServer, body: dict[str, Any], status: int) -> None:
    response = server.http.post("/v1/conversations", json=body)
    assert response.status_code == status, response.text
    assert "/etc" not in response.text and "/root" not in response.text


def test_unknown_ids_are_404(server: RunningServer) -> None:
    conversation = create(server)
    for method, path in (
        ("GET", "/v1/conversations/conv_x"),
        ("POST", "/v1/conversations/conv_x/turns"),
        ("DELETE", "/v1/conversations/conv_x"),
        ("GET", f"{conversation}/turns/turn_x/audio"),
        ("POST", f"{conversation}/turns/turn_x/takes"),
        ("PATCH", f"{conversation}/turns/turn_x"),
        ("GET", "/v1/conversations/conv_x/export"),
    ):
        assert server.http.request(method, path, json={"input": "Hi."}).status_code == 404
    assert server.http.get("/v1/conversations").status_code == 405


def test_a_full_store_drops_what_was_not_used_for_long() -> None:
    now = 0.0
    store = ConversationStore(2, 3600, lambda: now)

    def held() -> HeldConversation:
        made = HeldConversation("", {})
        made.used = now
        return store.add(made)

    first = held()
    now = 200.0
    second = held()
    with pytest.raises(ServerBusy) as busy:
        held()
    assert 0 < busy.value.retry_after <= 300
    now = 400.0
    held()
    assert len(store) == 2 and store.get(second.id) is second
    with pytest.raises(Exception, match="conversation"):
        store.get(first.id)
    now = 5000.0
    store.drop_expired()
    assert len(store) == 0


def test_conversations_are_counted(server: RunningServer) -> None:
    before = server.http.get("/metrics").text
    create(server)
    assert "\ncsm_conversations " in before and server.http.get("/metrics").text != before
