"""Manifests in CSV and in lines of text."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from pathlib import Path

import pytest

from csm_cli.errors import ScriptInvalid
from csm_cli.script import read_either, read_manifest


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
        ("id,txet\na,Hi.\n", ['1:1 the first line must name the columns, "text" among them']),
        ("text,text\na,Hi.\n", ['1:1 the header names "text" twice; keep one']),
        ("text,seed\nHi.,soon\n", ["2:1"]),
        ("text,sped\nHi.,1\n", ["2:1 unknown field"]),
        ("text\nHi., Ho.\n", ["2:1 2 cells, but the header names 1 columns"]),
        ('text\n"Hi.\n', ["2:1 not a row of CSV"]),
        ("text,id\n,a\n", ["2:1"]),
        ("text\nHi\x07\n", ["2:1 control character U+0007"]),
        ("", ["1:1 there are no lines to speak"]),
        ("text\n", ["1:1 there are no lines to speak"]),
    ],
)
def test_invalid_csv_is_reported_with_its_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = diagnostics(write(tmp_path, "a.csv", text))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


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
