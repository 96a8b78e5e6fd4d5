"""csm check: every diagnostic of every file."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

Csm = Callable[..., Result]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text("turns:\n  - 0: Hello.\n  - 1: Hi!\n")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text("speakers: {ana: {id: 0}}\nturns:\n  - bne: Hello.\n  - {speaker: ana, txt: Hi}\n")
    return path


def test_a_valid_file_is_reported(csm: Csm, good: Path) -> None:
    result = csm("check", good)
    assert (result.code, result.out, result.err) == (0, "", f"{good}: valid, 2 turns\n")


@pytest.mark.parametrize(
    "lines", ["turns: [{0: Hello}, {1: Hi}]", '{"id": "a", "text": "Hello"}\n{"id": "b", "text": "Hi"}']
)
def test_standard_input_is_a_script_or_a_manifest(csm: Csm, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    result = csm("check", "-")
    assert (result.code, result.err) == (0, "-: valid, 2 turns\n")


def test_diagnostics_of_all_files_are_shown_and_counted(csm: Csm, good: Path, bad: Path) -> None:
    result = csm("check", bad, good, bad.with_name("none.yaml"))
    assert result.code == 3 and f"{bad}:3:" in result.err and "bne" in result.err and "none.yaml" in result.err
    assert result.err.splitlines()[-1].endswith("errors; validation failed")


def test_diagnostics_that_are_not_shown_are_counted(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "txt": "Hello"}\n{"id": "a"}\n' * 200)
    last = csm("check", tmp_path / "a.jsonl").err.splitlines()[-1]
    assert int(last.split()[0]) > 200 and "the first 200 are above" in last


def test_diagnostics_as_json(csm: Csm, good: Path, bad: Path) -> None:
    result = csm("check", "--json", good, bad)
    assert result.code == 3 and not result.json["ok"]
    first, second = result.json["files"]
    assert first == {"file": str(good), "ok": True, "turns": 2, "diagnostics": []}
    assert second["diagnostics"][0]["line"] == 3 and set(second["diagnostics"][0]) == {
        "file",
        "line",
        "column",
        "path",
        "message",
    }


@pytest.mark.parametrize("kind", ["script", "batch"])
def test_the_schema_for_editors(csm: Csm, kind: str) -> None:
    assert csm("check", "--schema", kind).json["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize("arguments", [[], ["--schema", "dialogue"]])
def test_usage(csm: Csm, arguments: list[str]) -> None:
    assert csm("check", *arguments).code == 2
