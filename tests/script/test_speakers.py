"""Speaker ids: given, assigned in order, or numbers used as names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from csm_cli.errors import ScriptInvalid
from csm_cli.script import Manifest, read_either, read_manifest, read_script, script_from
from csm_cli.types import Conversation


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("one.wav", np.zeros(24000, np.float32), 24000)


def ids(conversation: Conversation) -> dict[str, int]:
    return {turn.name: turn.speaker for turn in (*conversation.context, *conversation.turns)}


def messages(data: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ScriptInvalid) as caught:
        script_from(data)
    return [(each.path, each.message) for each in caught.value.diagnostics]


def write_manifest(*lines: object) -> Path:
    Path("m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return Path("m.jsonl")


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        ("{ana: {}, ben: {gain: -1}, cleo: {}}", {"ana": 0, "ben": 1, "cleo": 2}),
        ("{ana: {}, ben: {id: 0}, cleo: {}}", {"ana": 1, "ben": 0, "cleo": 2}),
        ("{ana: {}, ben: {id: 7}, cleo: {id: 1}, dan: {}}", {"ana": 0, "ben": 7, "cleo": 1, "dan": 2}),
        ("{ana: {}, 0: {}, 2: {}, ben: {}}", {"ana": 1, "0": 0, "2": 2, "ben": 3}),
        ("{3: {id: 5}, 5: {id: 3}}", {"3": 5, "5": 3}),
    ],
)
def test_declared_speakers_without_an_id_get_the_lowest_free_ones(speakers: str, expected: dict[str, int]) -> None:
    turns = "".join(f"  - {name}: Hello.\n" for name in reversed(expected))
    Path("s.yaml").write_text(f"speakers: {speakers}\nturns:\n{turns}")
    assert ids(read_script("s.yaml")) == expected


def test_voice_prompts_and_context_have_the_assigned_ids() -> None:
    voice = {"voice": "one.wav", "voice_text": "I am Ben."}
    context = [{"speaker": "ana", "audio": "one.wav", "text": "Hi."}]
    script = script_from({"speakers": {"ana": {}, "ben": voice}, "context": context, "turns": [{"ben": "Hello."}]})
    assert [(turn.name, turn.speaker) for turn in script.context] == [("ben", 1), ("ana", 0)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ana", "ben", "ana"], {"ana": 0, "ben": 1}),
        (["ben", "ana"], {"ben": 0, "ana": 1}),
        (["ana", "0", "ben", "2"], {"ana": 1, "0": 0, "ben": 3, "2": 2}),
        (["12", "3"], {"12": 12, "3": 3}),
    ],
)
@pytest.mark.parametrize("suffix", ["yaml", "json", "jsonl"])
def test_undeclared_names_get_ids_in_order_of_appearance(
    names: list[str], expected: dict[str, int], suffix: str
) -> None:
    turns = [{"speaker": name, "text": "Hello."} for name in names]
    lines = "\n".join(json.dumps(turn) for turn in turns)
    Path(f"s.{suffix}").write_text(lines if suffix == "jsonl" else json.dumps({"turns": turns}))
    assert ids(read_script(f"s.{suffix}")) == expected


def test_context_comes_before_turns_in_the_order_of_appearance() -> None:
    context = [{"speaker": "ben", "audio": "one.wav", "text": "Hi."}]
    assert ids(script_from({"turns": [{"ana": "Hello."}, {"0": "Hi."}], "context": context})) == {
        "ben": 1,
        "ana": 2,
        "0": 0,
    }


def test_roles_of_a_chat_are_names() -> None:
    chat = {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]}
    assert ids(script_from(chat)) == {"user": 0, "assistant": 1}


def test_a_system_prompt_is_refused_unless_a_speaker_has_that_name() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    (error,) = messages({"messages": chat})
    assert error[0] == "messages[0].role" and "system prompt cannot be spoken" in error[1]
    assert ids(script_from({"messages": chat, "speakers": {"system": {}, "user": {}}})) == {"system": 0, "user": 1}


def test_undeclared_names_beside_a_speakers_section_are_errors() -> None:
    turns = [{"bne": "Hello."}, {"0": "Hi."}]
    assert messages({"speakers": {"ana": {}, "ben": {}}, "turns": turns}) == [
        ("turns[0].bne", '"bne" is not declared; speakers: ana, ben'),
        ("turns[1].0", "0 is not declared; speakers: ana, ben"),
    ]
    many = {f"speaker {letter}": {} for letter in "abcdefghijk"}
    (error,) = messages({"speakers": many, "turns": [{"speaker kk": "Hello."}]})
    assert error[1].endswith('is not declared; did you mean "speaker k"?')


@pytest.mark.parametrize("name", ["1000", "-1", "1.5", " "])
def test_a_number_that_is_no_id_is_not_a_name(name: str) -> None:
    (error,) = messages({"turns": [{"speaker": name, "text": "Hello."}]})
    assert error[0] == "turns[0].speaker" and "from 0 to 999" in error[1]


def test_at_most_1000_speakers() -> None:
    names = [f"s{number}" for number in range(1001)]
    turns = [{name: "Hello."} for name in names]
    assert max(ids(script_from({"turns": turns[:1000]})).values()) == 999
    (error,) = messages({"turns": turns})
    assert error[0] == "turns[1000].s1000" and "at most 1000" in error[1]
    declared = {name: {} for name in names[:1000]}
    assert ids(script_from({"speakers": declared, "turns": turns[999:1000]})) == {"s999": 999}
    assert messages({"speakers": {**declared, "s1000": {}}, "turns": turns[:1]}) == [
        ("speakers", "expected at most 1000 speakers, got 1001")
    ]


def test_a_manifest_without_a_header_gives_a_name_one_id_in_all_lines() -> None:
    path = write_manifest(
        {"speaker": "ana", "text": "Hello."},
        {"speaker": "ben", "text": "Hi."},
        {"text": "Without a speaker."},
        {"turns": [{"cleo": "Hello."}, {"3": "Hi."}, {"ana": "Yes."}]},
        {"speaker": "ben", "text": "Bye."},
    )
    expected = [{"ana": 0}, {"ben": 1}, {"0": 0}, {"cleo": 2, "3": 3, "ana": 0}, {"ben": 1}]
    manifest = read_manifest(path)
    assert [ids(item) for item in manifest] == expected
    assert [ids(item) for item in manifest] == expected, "each pass assigns the same ids"
    assert [ids(item) for _, item in Manifest(path).lines() if isinstance(item, Conversation)] == expected


def test_a_csv_has_names_too() -> None:
    Path("m.csv").write_text("speaker,text\nana,Hello.\nben,Hi.\n7,Yes.\nana,No.\n")
    assert [ids(item) for item in read_either("m.csv")] == [{"ana": 0}, {"ben": 1}, {"7": 7}, {"ana": 0}]


def test_a_manifest_header_assigns_ids_and_a_line_may_declare_its_own_speakers() -> None:
    path = write_manifest(
        {"speakers": {"ana": {"id": 1}, "ben": {}, "cleo": {}}},
        {"speaker": "cleo", "text": "Hello."},
        {"speakers": {"dan": {}}, "turns": [{"dan": "Hello."}]},
        {"turns": [{"ben": "Hi."}, {"ana": "Hello."}]},
    )
    assert [ids(item) for item in read_manifest(path)] == [{"cleo": 2}, {"dan": 0}, {"ben": 0, "ana": 1}]


def test_the_context_of_a_header_comes_first() -> None:
    context = [{"speaker": "ana", "audio": "one.wav", "text": "Hi."}]
    path = write_manifest({"csm": 1, "title": "a"} | {"context": context}, {"speaker": "ben", "text": "Hello."})
    assert [ids(item) for item in read_manifest(path)] == [{"ana": 0, "ben": 1}]
