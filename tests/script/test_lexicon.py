"""Lexicons: the files that people have, and which words of a text are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm_cli.errors import ScriptInvalid
from csm_cli.script import read_script
from csm_cli.script.lexicon import apply_lexicon, find_words, read_lexicon

Csm = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "Nguyen: win\nNew York: noo york\n"),
        ("a.yml", "lexicon:\n  Nguyen: win\n  New York: noo york\n"),
        ("a.json", '{"Nguyen": "win", "New York": "noo york"}'),
        ("a.csv", "word,spelling\nNguyen,win\nNew York,noo york\n"),
        ("a.csv", "\ufeffNguyen;win\r\nNew York;noo york\r\n"),
        ("a.csv", 'sep=;\n"Nguyen";"win"\n"New York";"noo york"\n'),
        ("a.csv", "# names\nNguyen,win,,\n\nNew York,noo york,,\n"),
        ("a.tsv", "grapheme\talias\nNguyen\twin\nNew York\tnoo york\n"),
        ("a.txt", "Nguyen = win\nNew  York = noo york\n"),
        ("a.txt", "Nguyen|win\nNew York|noo york"),
    ],
)
def test_files_as_people_have_them(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_lexicon(path) == {"Nguyen": "win", "New York": "noo york"}


@pytest.mark.parametrize(
    ("name", "content", "line", "named"),
    [
        ("a.csv", "Ana,anna\nBen,ben\nAna,ahna\n", 3, "line 1"),
        ("a.yaml", "Ana: anna\nAna: ahna\n", 2, "Ana"),
        ("a.csv", "Ana,anna\nBen,\n", 2, "Ben"),
        ("a.csv", "Ana,anna\n,ben\n", 2, "ben"),
        ("a.yaml", "Ana: anna\nBen:\n", 2, "Ben"),
        ("a.yaml", "Ana: [a, b]\n", 1, "Ana"),
        ("a.tsv", "Ana\tanna\nBen\n", 2, "1 cell"),
        ("a.csv", "Ana,anna\nBen,b,e\n", 2, "3 cells"),
        ("a.csv", "!!!,anna\n", 1, "!!!"),
        ("a.yaml", "- Ana\n", 0, "a list"),
        ("a.csv", "", 0, "no entries"),
        ("a.docx", "Ana,anna\n", 0, ".yaml"),
        ("a.csv", 'Ana,"anna\n', 1, "CSV"),
    ],
)
def test_a_wrong_entry_is_named_with_its_line(tmp_path: Path, name: str, content: str, line: int, named: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ScriptInvalid) as caught:
        read_lexicon(path)
    (found,) = caught.value.diagnostics[:1]
    assert found.file == str(path) and (not line or found.line == line)
    assert named in f"{found.message} {found.path}" or named in str([each.message for each in caught.value.diagnostics])


ENTRIES = {"Nguyen": "win", "New York": "noo york", "York City": "city", "don": "dawn", "Brien": "bryan", "t": "tee"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nguyen, NGUYEN and nguyen.", "win, win and win."),
        ("Nguyen's, Nguyen\u2019s and Nguyen'll", "win's, win\u2019s and win'll"),
        ("Nguyens and xNguyen", "Nguyens and xNguyen"),
        ("(Nguyen) 'Nguyen' \u201cNguyen\u201d Nguyen-Smith", "(win) 'win' \u201cwin\u201d win-Smith"),
        ("Don, don't say O'Brien.", "dawn, don't say O'Brien."),
        ("New\nYork City", "noo york City"),
        ("York City, New York", "city, noo york"),
        ("Nguyen_2 Nguyen2", "Nguyen_2 Nguyen2"),
        ("l'Nguyen", "l'win"),
    ],
)
def test_whole_words_are_replaced(text: str, expected: str) -> None:
    assert apply_lexicon(text, ENTRIES) == expected


def test_case_counts_where_entries_differ_in_nothing_else() -> None:
    assert apply_lexicon("US and us, Us", {"US": "you ess", "us": "us"}) == "you ess and us, Us"
    assert apply_lexicon("sql", {"SQL": "sequel"}) == "sequel"


def test_words_of_any_script_are_found() -> None:
    assert apply_lexicon("東京都に行く", {"東京": "とうきょう"}) == "とうきょう都に行く"
    assert apply_lexicon("Zoë und Zoe\u0308", {"Zoe\u0308": "Zo-ee"}) == "Zo-ee und Zoe\u0308"  # texts are composed
    assert apply_lexicon("की क", {"क": "ka"}) == "की ka"  # a vowel sign belongs to its word
    assert apply_lexicon("ÉLAN", {"élan": "ay-lan"}) == "ay-lan"


def test_the_longest_of_overlapping_entries_counts_and_nothing_is_replaced_twice() -> None:
    assert apply_lexicon("C++ and C", {"C": "sea", "C++": "C plus plus"}) == "C plus plus and sea"
    assert find_words("a b", {"a": "b", "b": "a"}) == [(0, 1, "b"), (2, 3, "a")]


def test_a_lexicon_of_many_entries_is_quick() -> None:
    entries = {f"word{number}": "x" for number in range(50_000)}
    for number in range(10):
        assert apply_lexicon(f"say word{number} now", entries) == "say x now"


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40), st.dictionaries(words, words, max_size=6))
def test_any_text_and_any_entries_are_applied(text: str, entries: dict[str, str]) -> None:
    spans = find_words(text, entries)
    assert all(0 <= start < end <= len(text) and spelling in entries.values() for start, end, spelling in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60), st.sampled_from(["a.csv", "a.tsv", "a.txt", "a.yaml", "a.json"]))
def test_any_file_is_read_or_refused(tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        assert read_lexicon(path)
    except ScriptInvalid as invalid:
        assert invalid.diagnostics


def test_a_script_may_name_a_file_and_errors_have_its_lines(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("Nguyen,win\n")
    script = tmp_path / "s.yaml"
    script.write_text("lexicon: names.csv\nturns:\n- ana: Ask Nguyen.\n")
    assert read_script(script).lexicon == {"Nguyen": "win"}
    (tmp_path / "names.csv").write_text("Nguyen,win\nNguyen,when\n")
    with pytest.raises(ScriptInvalid) as caught:
        read_script(script)
    assert [(Path(each.file).name, each.line) for each in caught.value.diagnostics] == [("names.csv", 2)]
    script.write_text("lexicon: none.csv\nturns:\n- ana: Ask Nguyen.\n")
    with pytest.raises(ScriptInvalid) as caught:
        read_script(script)
    assert caught.value.diagnostics[0].path == "lexicon" and "none.csv" in caught.value.diagnostics[0].message


def test_check_shows_what_will_be_spoken(csm: Csm, tmp_path: Path) -> None:
    path = tmp_path / "names.yaml"
    path.write_text("Nguyen: win\nSQL: sequel\n")
    found = csm("lexicon", "check", path, "Nguyen's SQL.", "--json").json
    assert found["spelled"] == "win's sequel." and found["entries"] == 2
    assert [each["word"] for each in found["replaced"]] == ["Nguyen", "SQL"]
    shown = csm("lexicon", "check", path, "Nguyen's SQL.").out
    assert "win's sequel." in shown and "SQL -> sequel" in shown
    assert "2 entries" in csm("lexicon", "check", path).out
    path.write_text("Nguyen: win\nNguyen: when\n")
    refused = csm("lexicon", "check", path, "Hi.")
    assert refused.code == 3 and f"{path}:2" in refused.err
    assert csm("lexicon", "check", tmp_path / "none.csv", "Hi.").code == 3


def test_the_flag_counts_for_say_converse_and_batch(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, script, rows = tmp_path / "names.tsv", tmp_path / "s.yaml", tmp_path / "m.csv"
    path.write_text("Nguyen\twin\n")
    script.write_text("lexicon: {nguyen: when, SQL: sequel}\nturns:\n- ana: Nguyen's SQL.\n")
    rows.write_text("id,text\na,Ask Nguyen.\n")
    options = ("--lexicon", path, "--model", tiny_checkpoint, "--max-duration", "0.3", "--json")
    said = csm("say", "Ask Nguyen.", "-o", tmp_path / "a.wav", *options).json["turns"][0]
    assert (said["text"], said["spelled"]) == ("Ask Nguyen.", "Ask win.")
    spoken = csm("converse", script, "-o", tmp_path / "b.wav", *options).json["turns"][0]
    assert spoken["spelled"] == "win's sequel."  # the flag wins over the script
    assert csm("batch", rows, "-o", tmp_path / "o" / "{id}.wav", *options).json["turns"][0]["spelled"] == "Ask win."
    refused = csm("say", "Hi.", "-o", tmp_path / "c.wav", "--lexicon", tmp_path / "none.csv")
    assert refused.code == 3 and "none.csv" in refused.err and not (tmp_path / "c.wav").exists()
