"""Manifests in CSV and in lines of text."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from helpers.audio import write_tone
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.errors import ScriptInvalid
from csm_cli.script import Manifest, ManifestColumns, read_either, read_manifest, read_voice_map


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def diagnostics(path: Path) -> list[str]:
    with pytest.raises(ScriptInvalid) as invalid:
        read_manifest(path)
    return [f"{each.line}:{each.column} {each.message}" for each in invalid.value.diagnostics]


@pytest.mark.parametrize(("name", "tab"), [("a.csv", ","), ("a.TSV", "\t")])
def test_a_csv_row_is_an_item(tmp_path: Path, name: str, tab: str) -> None:
    rows = ["\ufeffid,speaker,input,seed", 'one,2,"Hello, you.",7', "", ",,Hi.,", 'three,0,"Line\none.",']
    rows = [row.replace(",", tab) for row in rows]
    first, second, third = read_manifest(write(tmp_path, name, "\r\n".join(rows)))
    assert (first.id, first.turns[0].speaker, first.turns[0].options.seed) == ("one", 2, 7)
    assert [each.turns[0].text for each in (first, second, third)] == [f"Hello{tab} you.", "Hi.", "Line\none."]
    assert (second.id, second.turns[0].speaker, second.turns[0].options.seed, third.id) == ("0004", 0, None, "three")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,text\na,Hi.\na,Ho.\n", ['3:1 "a" is the id of line 2 too']),
        ("id,txet\na,Hi.\n", ["1:1 which column has the words? give --text-column NAME; columns: id, txet"]),
        ("text,text\na,Hi.\n", ['1:1 the header names "text" twice; keep one']),
        ("text,seed\nHi.,soon\n", ["2:1"]),
        ("text\nHi., Ho.\n", ['2:1 cell 2 ("Ho.") is in a column without a name']),
        ('text\n"Hi.\n', ["2:1 not a row of CSV"]),
        ("text,id\n,a\n", ["2:1"]),
        ("\x07\n", ["1:1 control character U+0007", "1:1 which column has the words?"]),
        ("text\nHi\x07\n", ["2:1 control character U+0007"]),
        ("", ["1:1 there are no lines to speak"]),
        ("text\n", ["1:1 there are no lines to speak"]),
    ],
)
def test_invalid_csv_is_reported_with_its_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = diagnostics(write(tmp_path, "a.csv", text))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


ONE = [("a", "Hello, you.", 0), ("b", "Bye.", 0)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id;text\na;Hello, you.\nb;Bye.\n"),
        ("a.csv", "sep=;\r\nID;TEXT\r\na;Hello, you.\r\nb;Bye.\r\n"),
        ("a.csv", '"sep=|"\nid|text\na|Hello, you.\nb|Bye.\n'),
        ("a.csv", 'ID,Text,,\na,"Hello, you.",,\nb,Bye.,,\n,,,\n'),
        ("a.csv", "Id\tInput\na\tHello, you.\nb\tBye.\n"),
        ("a.tsv", "id\ttext\t\na\tHello, you.\nb\tBye.\n"),
        ("a.tsv", 'id,text\na,"Hello, you."\nb,Bye.\n'),
        ("a.json", '[{"id": "a", "text": "Hello, you."}, {"id": "b", "text": "Bye."}]'),
        ("a.json", '\n[\n{"id": "a", "text": "Hello, you."},\n\n{"id": "b", "text": "Bye."}\n]\n'),
        ("a.jsonl", '[{"id": "a", "text": "Hello, you."}, {"id": "b", "text": "Bye."}]'),
    ],
)
def test_delimiters_headers_and_arrays_are_told_from_the_file(name: str, text: str, tmp_path: Path) -> None:
    items = read_manifest(write(tmp_path, name, text))
    assert [(item.id, item.turns[0].text, item.turns[0].speaker) for item in items] == ONE


def test_a_quote_between_tabs_is_a_character(tmp_path: Path) -> None:
    text = 'id\ttext\na\t"Hello there.\nb\tSay "yes".\nc\t"Quoted ""words""."\nd\t"Two\nlines."\n'
    texts = [item.turns[0].text for item in read_manifest(write(tmp_path, "a.tsv", text))]
    assert texts == ['"Hello there.', 'Say "yes".', 'Quoted "words".', "Two\nlines."]


GAME = "Nr,Character,Line,Notes\n7,ana,Who goes there?,loud\n8,ben,Only me.,\n"


def test_the_users_columns_and_the_others_are_carried_along(tmp_path: Path) -> None:
    columns = ManifestColumns(text="line", speaker="character", id="nr")
    one, two = read_manifest(write(tmp_path, "game.csv", GAME), columns)
    assert (one.id, one.turns[0].name, one.turns[0].text, one.extra) == (
        "7",
        "ana",
        "Who goes there?",
        {"Notes": "loud"},
    )
    assert (two.turns[0].name, two.extra) == ("ben", {})
    by_number = ManifestColumns(text="2")
    first, _ = read_manifest(write(tmp_path, "plain.csv", "a,Hi.\nb,Ho.\n"), by_number)
    assert (first.turns[0].text, first.extra) == ("Hi.", {"column 1": "a"})
    array = '[{"line": "Hi.", "character": "ana", "mood": 3}]'
    (item,) = read_manifest(write(tmp_path, "a.json", array), ManifestColumns(text="line", speaker="character"))
    assert (item.turns[0].text, item.turns[0].name, item.extra) == ("Hi.", "ana", {"mood": 3})


def test_unclear_columns_are_one_error_that_lists_them(tmp_path: Path) -> None:
    (found,) = diagnostics(write(tmp_path, "game.csv", GAME))
    assert found.startswith("1:1") and "--text-column" in found and "Character, Line, Notes" in found
    with pytest.raises(ScriptInvalid) as caught:
        read_manifest(tmp_path / "game.csv", ManifestColumns(text="words"))
    assert caught.value.count == 1 and "words" in caught.value.diagnostics[0].message


def test_a_column_that_looks_like_a_field_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (item,) = read_manifest(write(tmp_path, "a.csv", "text,temprature\nHi.,0.5\n"))
    assert item.extra == {"temprature": "0.5"} and '"temperature"' in caplog.text


def test_a_voice_map_gives_each_name_its_voice(tmp_path: Path) -> None:
    write_tone(tmp_path / "ana.wav")
    write(tmp_path, "ana.txt", "I am Ana.")
    path = write(tmp_path, "game.csv", GAME)
    columns = ManifestColumns(text="line", speaker="character", id="nr")
    both = write(tmp_path, "map.yaml", "ana: ana.wav\nben: {voice: ana.wav, gain: 2}\n")
    one, two = read_manifest(path, columns, read_voice_map(both))
    assert [turn.text for turn in one.context] == ["I am Ana."] and two.turns[0].gain == 2
    only = write(tmp_path, "map.json", '{"speakers": {"ana": "ana.wav"}}')
    with pytest.raises(ScriptInvalid) as caught:
        read_manifest(path, columns, read_voice_map(only))
    assert caught.value.diagnostics[0].line == 3 and "ben" in caught.value.diagnostics[0].message
    for text in ("- ana\n", "ana: nobody.wav\n", ""):
        with pytest.raises(ScriptInvalid):
            read_voice_map(write(tmp_path, "bad.yaml", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"text": "Hi."},]', '1:17 remove the "," before "]"'),
        ('[{"text": "Hi."}\n{"text": "Ho."}]', "2:1"),
        ('[{"text": "Hi."}', "1:17 the JSON ends too soon"),
        ('[{"text": "Hi.", "id": "a"}, {"text": "Ho.", "id": "a"}]', '1:23 "a" is the id of item 1 too'),
        ("[1]", "1:1"),
        ("[]", "1:1 there are no lines to speak"),
        ('[{"text": "Hi."}] x', "1:18"),
    ],
)
def test_a_damaged_array_is_one_diagnostic(text: str, expected: str, tmp_path: Path) -> None:
    (found,) = diagnostics(write(tmp_path, "a.json", text))
    assert found.startswith(expected), found


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"PK\x03\x04", "ZIP"), (b"%PDF-1.7", "PDF"), (b"{\\rtf1", "RTF"), ("text\nHi.".encode("utf-16"), "UTF-16")],
)
def test_files_that_are_no_text_are_named(data: bytes, kind: str, tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(data)
        assert kind in diagnostics(tmp_path / name)[0]


cells = st.text(alphabet='ab ,;"\n\té', max_size=6).filter(lambda cell: any(map(str.isalpha, cell)) or not cell.strip())


@settings(derandomize=True, max_examples=300)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from([",", ";", "|"]))
def test_each_row_that_a_spreadsheet_writes_is_an_item(rows: list[tuple[str, str]], delimiter: str) -> None:
    """As csv writes them; with rows that are empty or have no words as the only ones that are no items."""
    table = io.StringIO()
    writer = csv.writer(table, delimiter=delimiter)
    writer.writerows([("text", "note"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "a.csv", table.getvalue())
        items = [item for _, item in Manifest(path).lines()]
    texts = [item.turns[0].text if not isinstance(item, ScriptInvalid) else "" for item in items]
    assert texts == [text.strip() for text, note in rows if text.strip() or note.strip()]


def test_lines_of_text_are_items(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "Hello there.\r\n\n[1]Hi! [0]# Oh {no}.\n")
    first, second = read_manifest(path)
    assert (first.id, first.turns[0].text, first.turns[0].speaker) == ("0001", "Hello there.", 0)
    assert [(turn.speaker, turn.text) for turn in second.turns] == [(1, "Hi!"), (0, "# Oh {no}.")]
    assert read_either(path) == [first, second]


@pytest.mark.parametrize(
    ("typed", "texts"), [("Hi.\nHo.\n", ["Hi.", "Ho."]), ('{"speaker": 0, "text": "Hi."}', ["Hi."])]
)
def test_standard_input_is_jsonl_if_it_begins_with_a_brace(
    monkeypatch: pytest.MonkeyPatch, typed: str, texts: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    assert [item.turns[0].text for item in read_manifest("-")] == texts


def test_memory_does_not_grow_with_a_manifest(tmp_path: Path) -> None:
    """After the check, which stores the ids."""
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for number in range(4000):
            print(json.dumps({"speaker": 0, "text": f"This is line {number} of very many."}), file=file)
    manifest = read_manifest(path)
    tracemalloc.start()
    count = sum(1 for _ in manifest)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000 and peak < 400_000
