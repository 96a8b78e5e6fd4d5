"""Text on its way to the model: composed, without invisible characters, and refused if nothing in it can be spoken."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result
from hypothesis import given
from hypothesis import strategies as st

from csm_cli.errors import ScriptInvalid
from csm_cli.script import parse_say, read_manifest, read_script
from csm_cli.script.spoken_text import clean_text, foreign_script, is_speakable

Csm = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Ol\u0065\u0301", "Olé"),
        ("soft\u00adhy\u200bphen\ufeff", "softhyphen"),
        ("one\ftwo\vthree\u2028four", "one two three four"),
        ("a\u200db", "ab"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian is written with joiners
        ("\u202ehello\u202c", "hello"),
        ("☺\ufe0f ok", "☺ ok"),
        ("tab\tand\nline", "tab\tand\nline"),
    ],
)
def test_invisible_characters_are_removed_and_letters_composed(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text())
def test_no_letter_is_lost(text: str) -> None:
    def letters(written: str) -> list[str]:
        return [char for char in unicodedata.normalize("NFC", written) if unicodedata.category(char)[0] in "LN"]

    clean = clean_text(text)
    assert letters(clean) == letters(text)
    assert clean_text(clean) == clean


@pytest.mark.parametrize("text", ["😀😀", "...", "—", "?!", "\u200b", "(  )", "♪"])
def test_what_has_nothing_to_speak_is_refused_everywhere(text: str, tmp_path: Path) -> None:
    assert not is_speakable(clean_text(text))
    (tmp_path / "s.yaml").write_text(f'turns:\n- ana: "{text}"\n', encoding="utf-8")
    (tmp_path / "m.csv").write_text(f'text\n"{text}"\n', encoding="utf-8")
    for read in (
        lambda: parse_say(text, 0),
        lambda: read_script(tmp_path / "s.yaml"),
        lambda: read_manifest(tmp_path / "m.csv"),
    ):
        with pytest.raises(ScriptInvalid):
            read()


@pytest.mark.parametrize("text", ["a", "7", "%", "€", "我", "Ω", "+"])
def test_letters_digits_and_named_symbols_are_spoken(text: str) -> None:
    assert parse_say(text, 0)[0].text == text


@pytest.mark.parametrize(
    ("text", "script"),
    [("Hello é", ""), ("Привет", "Cyrillic"), ("你好", "Cjk"), ("Hello мир", ""), ("123", ""), ("γεια σου", "Greek")],
)
def test_the_script_of_a_text(text: str, script: str) -> None:
    assert foreign_script(text) == script


def test_a_control_character_is_reported_with_its_file_and_place(tmp_path: Path, csm: Csm) -> None:
    (tmp_path / "a.txt").write_text("One.\nTwo.\nThr\x01ee.")
    with pytest.raises(ScriptInvalid) as caught:
        parse_say("One.\n[0] Two.\nThr\x01ee.", 0, "a.txt")
    found = caught.value.diagnostics[0]
    assert (found.file, found.line, found.column) == ("a.txt", 3, 4)
    assert "a.txt:3:4" in csm("say", "-f", tmp_path / "a.txt", "-o", tmp_path / "a.wav").err


def test_tags_are_split_anywhere_but_in_words(caplog: pytest.LogCaptureFixture) -> None:
    assert [turn.text for turn in parse_say("[0]Hello.[1]Good morning.", 0)] == ["Hello.", "Good morning."]
    assert [turn.text for turn in parse_say("[0]See a[1] there.", 0)] == ["See a[1] there."]
    (turn,) = parse_say("Hello. [1]Hi.", 0)
    assert turn.text == "Hello. [1]Hi." and "[1]" in caplog.text
    assert parse_say("[ana]Hi.", 0)[0].text == "[ana]Hi." and "[ana]" in caplog.text
