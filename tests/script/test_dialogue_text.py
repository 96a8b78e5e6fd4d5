"""Dialogues in plain text: every line is spoken by its speaker, left out for a reason, or an error at its line."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.errors import CsmError, ScriptInvalid
from csm_cli.script import read_either, read_script
from csm_cli.script.dialogue_text import detect_dialogue, read_dialogue

Csm = Callable[..., Result]


def spoken(text: str) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in read_dialogue("a.txt", text, detect_dialogue(text) or "text")]


TWO = [("ANA", "Good morning."), ("BEN", "Hello: you.")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ANA: Good morning.\nBEN: Hello: you.\n", TWO),
        ("ANA:\nGood morning.\n\nBEN:   Hello:\nyou.", TWO),
        ("- ANA: Good morning.\n- BEN: Hello: you.", TWO),
        ("1. ANA: Good morning.\n2) BEN: Hello: you.", TWO),
        ("[00:01] ANA: Good morning.\n[00:02:03] BEN: Hello: you.", TWO),
        ("ANA [00:01]: Good morning.\nBEN (00:03): Hello: you.", TWO),
        ("ANA (quietly): Good morning.\n(A door.)\nBEN (CONT'D): Hello: you.", TWO),
        ("**ANA:** Good morning.\n**BEN**: Hello: *you*.", TWO),
        ("# A play\n(Night.)\nANA: Good\nmorning.\nBEN: Hello:\nyou.", TWO),
        ("# A play\n---\n> **ANA:** Good morning.\n>\n> **BEN:** Hello: you.", TWO),
        (
            "### ANA\nGood morning.\n### BEN\nHello: you.\n### ANA\nOh.\n### BEN\nYes.",
            [*TWO, ("ANA", "Oh."), ("BEN", "Yes.")],
        ),
        ("[ANA] Good morning.\n[BEN] Hello: you.", TWO),
        ("[ANA]: Good morning.\n[BEN]: Hello: you.", TWO),
        ("<ANA>Good morning.</ANA>\n<BEN>Hello: <b>you</b>.</BEN>", [TWO[0], ("BEN", "Hello: you.")]),
        ('<?xml version="1.0"?>\n<dialogue><p who="ANA">Good morning.</p><p who="BEN">Hello: you.</p></dialogue>', TWO),
        (
            "INT. HOUSE\n\nANA\nGood morning.\n\nBEN (V.O.)\nHello: you.\n\nANA\nOh.\n\nBEN\nYes.",
            [*TWO, ("ANA", "Oh."), ("BEN", "Yes.")],
        ),
        (
            "Speaker 1: Hi.\nspeaker 1: No.\nSpeaker 2: Yes.",
            [("Speaker 1", "Hi."), ("Speaker 1", "No."), ("Speaker 2", "Yes.")],
        ),
        ("(speaker 0) Hi.\n(speaker 1) No.", [("speaker 0", "Hi."), ("speaker 1", "No.")]),
        ("0: Hi.\n1: No.", [("0", "Hi."), ("1", "No.")]),
        ("Dr. Weiß：你好。\nAnna：好。", [("Dr. Weiß", "你好。"), ("Anna", "好。")]),
        ("ANA: Hi.\fBEN: No.", [("ANA", "Hi."), ("BEN", "No.")]),
        ("[S1] Hi. [S2] No. (laughs)", [("S1", "Hi."), ("S2", "No. (laughs)")]),
    ],
)
def test_labels_of_speakers(text: str, expected: list[tuple[str, str]]) -> None:
    assert spoken(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "It was late. He said: go home.\nNobody went.\nThe end.",
        "Once upon a time: a story.\n\nThere was a king.\nHe was old.",
        "[laughs] Well.\nThat is it.\nNo more.\n[sighs] Yes.\nGood.\nBye.",
        "csm: 1\nturns:\n- ana: Hi.\n",
        "Hello there.",
        "",
    ],
)
def test_what_is_no_dialogue(text: str) -> None:
    assert detect_dialogue(text) is None


def test_what_is_not_spoken_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(spoken("# Title\nANA: Hi.\n[Music]\nBEN (off): No.\nNote: this is said.\nANA: Yes.")) == 3
    assert all(part in caplog.text for part in ("line 1", "# Title", "line 3", "line 4", "(off)", "Note"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A word first.\nANA: Hi.\nBEN: No.", 1),
        ("ANA: Hi.\nBEN:\nANA: No.", 2),
        ("<A>Hi.</A>\nand\n<B>No.</B>", 2),
        ("<A>Hi.\n<B>No.</B></C></A>", 2),
        ("<A>Hi.</A><B>No.\n<C></C>", 2),
    ],
)
def test_words_that_nobody_speaks_are_an_error_at_their_line(text: str, line: int) -> None:
    with pytest.raises(ScriptInvalid) as caught:
        read_dialogue("a.txt", text, "text")
    assert caught.value.diagnostics[0].line == line


@pytest.mark.parametrize("name", ["play.txt", "play.md", "play", "play.yaml"])
def test_check_converse_and_convert_read_the_same(name: str, tmp_path: Path, csm: Csm) -> None:
    (tmp_path / name).write_text("ANA: Good morning.\nBEN: Hello!\n")
    (conversation,) = read_either(tmp_path / name)
    assert [(turn.name, turn.speaker) for turn in conversation.turns] == [("ANA", 0), ("BEN", 1)]
    assert csm("check", tmp_path / name).code == 0
    assert csm("converse", tmp_path / name, "-n").out.count("Hello!") == 1
    assert csm("script", "convert", tmp_path / name, "-o", tmp_path / "x.yaml").code == 0
    assert [turn.text for turn in read_script(tmp_path / "x.yaml").turns] == ["Good morning.", "Hello!"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"role": "0", "content": "Hi."}, {"role": "1", "content": [{"type": "text", "text": "Ho."}]}]'),
        ("a.yaml", "- role: 0\n  content: Hi.\n- role: 1\n  content: Ho.\n"),
        ("a.yaml", '- "0": Hi.\n- "1": Ho.\n'),
        ("a.json", '[{"speaker": 0, "text": "Hi."}, {"speaker": 1, "text": "Ho."}]'),
        ("a.txt", "[0]Hi.[1]Ho."),
        ("a", "[0] Hi.\n[1] Ho."),
    ],
)
def test_bare_lists_and_tags_are_scripts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [(turn.speaker, turn.text) for turn in read_script(tmp_path / name).turns] == [(0, "Hi."), (1, "Ho.")]


lines = st.lists(
    st.sampled_from(
        [
            "ANA: Hi.",
            "BEN: No one.",
            "**ANA:** Go.",
            "(laughs)",
            "# Act",
            "---",
            "more words",
            "Note: x",
            "",
            "- ",
            "[BEN] a",
        ]
    )
    | st.text("ANA: *_#<>/[]().b\n", max_size=20),
    max_size=12,
)


@settings(derandomize=True, max_examples=300)
@given(lines)
def test_no_word_is_new_and_no_line_is_lost(parts: list[str]) -> None:
    logging.disable(logging.WARNING)
    try:
        turns = read_dialogue("a.txt", "\n".join(parts), "text")
    except CsmError:
        return
    finally:
        logging.disable(logging.NOTSET)
    written = re.sub("[*_`]", "", "".join(parts))  # marks of emphasis are removed
    for turn in turns:
        assert all(re.sub("[*_`]", "", word) in written for word in turn.text.split())
    assert all("words" not in part or any("words" in turn.text for turn in turns) for part in parts)
