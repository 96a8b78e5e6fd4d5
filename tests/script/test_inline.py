"""Tagged text and --context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from csm_cli.errors import ScriptInvalid, UsageError
from csm_cli.script import parse_context, parse_say
from csm_cli.types import Recording, Turn


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("prev.wav", "a=b.wav", "silent.wav"):
        soundfile.write(name, np.zeros(0 if name == "silent.wav" else 2400, np.float32), 24000)


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Hello.", [(7, "Hello.")]),
        ("[0]Hello.", [(0, "Hello.")]),
        (" [1] Hello.\n[0] Hi [2]there[3].", [(1, "Hello."), (0, "Hi"), (2, "there[3].")]),
        ("[bold] Hello [1] there", [(7, "[bold] Hello [1] there")]),
        ("See [1] there", [(7, "See [1] there")]),
        ("[2024] was good", [(7, "[2024] was good")]),
        ("<|AUDIO|> :smile: [red]", [(7, "<|AUDIO|> :smile: [red]")]),
    ],
)
def test_tags_start_turns_only_if_the_text_begins_with_one(text: str, turns: list[tuple[int, str]]) -> None:
    assert [(turn.speaker, turn.text) for turn in parse_say(text, 7)] == turns


@pytest.mark.parametrize(
    ("text", "location"), [("", "1:1"), (" \n", "1:1"), ("[0]", "1:1"), ("[0]Hi.\n [1] [2]Ho.", "2:2")]
)
def test_a_turn_without_text_is_rejected(text: str, location: str) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        parse_say(text, 0)
    assert [diagnostic.location for diagnostic in caught.value.diagnostics] == [f"<text>:{location}"]


@pytest.mark.parametrize("odd", ["\x1b", "\x00", "\x85", "\udcff"])
def test_control_characters_are_rejected_as_in_scripts(odd: str) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        parse_say(f"[0]Hi.\n[1]Ho{odd}!", 0)
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.location, diagnostic.path) == ("<text>:2:6", "turns[1].text")
    assert diagnostic.message.startswith(f"control character U+{ord(odd):04X} cannot be spoken")
    with pytest.raises(ScriptInvalid):
        parse_context(f"[1]prev.wav=Hi{odd}")


texts = st.text(alphabet="ab [].,!", min_size=1, max_size=12).map(str.strip).filter(lambda text: text[:1].isalpha())


@given(st.lists(st.tuples(st.integers(0, 999), texts), min_size=1, max_size=5))
def test_tagged_turns_round_trip(turns: list[tuple[int, str]]) -> None:
    text = "\n".join(f"[{speaker}]{words}" for speaker, words in turns)
    assert [(turn.speaker, turn.text) for turn in parse_say(text, 0)] == turns


@pytest.mark.parametrize("name", ["prev.wav", "a=b.wav", "./prev.wav", r".\prev.wav"])
def test_context_is_a_recorded_turn(name: str) -> None:
    turn = parse_context(f"[1]{name}=1 + 1 = 2")
    assert turn == Turn(1, "1 + 1 = 2", "1", recording=Recording(Path(name.replace("\\", "/"))))


@pytest.mark.parametrize("flag", ["", "prev.wav=Hi", "[1]prev.wav", "[x]prev.wav=Hi", "[1]=Hi"])
def test_malformed_context_is_a_usage_error(flag: str) -> None:
    with pytest.raises(UsageError, match="--context takes"):
        parse_context(flag)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("[1]gone.wav=Hi = ho", "no such file: gone.wav"),
        ("[1]silent.wav=Hi", "holds no audio (zero length)"),
        ("[1]prev.wav= ", "expected the text after =, got nothing"),
    ],
)
def test_unusable_context_is_rejected(flag: str, message: str) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        parse_context(flag)
    assert [diagnostic.message for diagnostic in caught.value.diagnostics] == [message]
