"""Complexity budgets of the readers of scripts, manifests and foreign forms: at most 2.6 times for twice the input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.audio import write_tone
from helpers.budget import assert_linear

from csm_cli.script import parse_say, parse_voice, read_manifest, read_script
from csm_cli.script.importers import convert
from csm_cli.script.limits import MAX_COLUMNS


def cue(text: str) -> str:
    return f"WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n{text}\n"


def many(line: str, n: int) -> str:
    return "".join(line.replace("#", str(number)) for number in range(n))


# How an input of n units is written, its suffix, and n: each took quadratic time or memory, or could.
IMPORTED: dict[str, tuple[Callable[[int], str], str, int]] = {
    "blank lines before Dia": (lambda n: "\n" * n + "[S1] a\n[S2] b", ".txt", 10_000),
    "turns of Dia": (lambda n: "[S1] a\n" * n, ".txt", 600),
    "tags of Dia without text": (lambda n: "[S1] " * n, ".txt", 1500),
    "VibeVoice spaces": (lambda n: "Speaker 1: a\n" + ("Speaker" + " " * 50 + "x\n") * n, ".txt", 2000),
    "spaces in a voice tag": (lambda n: cue("<v" + " " * n + "x"), ".vtt", 20_000),
    "open voice tags": (lambda n: cue("<v a" * n), ".vtt", 10_000),
    "open braces": (lambda n: cue("{\\" * n), ".vtt", 10_000),
    "digits of a name": (lambda n: cue("<v " + "1" * n + "a>b"), ".vtt", 20_000),
    "digits of a reference": (lambda n: cue("&#" + "1" * n + ";"), ".vtt", 10_000),
    "closing quotes": (lambda n: cue("a." + ")" * n + "b"), ".vtt", 10_000),
    "cues with names but the last": (
        lambda n: many("1\n00:00:01,000 --> 00:00:02,000\nA: b.\n\n", n) + "1\n00:00:01,000 --> 00:00:02,000\nb\n",
        ".srt",
        600,
    ),
    "arrows in a note": (lambda n: cue("Hi.") + "\nNOTE\n" + "a --> b\n" * n, ".vtt", 2000),
    "lines of captions that roll up": (
        lambda n: "WEBVTT\n\n" + "00:01.000 --> 00:01.000\n" + ("a\n" * n + "\n00:01.000 --> 00:01.000\n") * 3 + "a\n",
        ".vtt",
        1000,
    ),
    "instructions of Higgs": (
        lambda n: json.dumps([{"role": "user", "content": "<|a_start|>" * n}]),
        ".json",
        2000,
    ),
}
SCRIPTS: dict[str, tuple[Callable[[int], str], str, int]] = {
    "spaces after a bracket": (lambda n: "turns:\n- a: [" + " " * n, ".yaml", 20_000),
    "brackets": (lambda n: "turns:\n- a: " + "[" * n, ".yaml", 10_000),
    "dashes": (lambda n: "- " * n, ".yaml", 10_000),
    "question marks": (lambda n: "? " * n, ".yaml", 10_000),
    "spaces in a line": (lambda n: "- " + " " * n + "x: [a] b: c", ".yaml", 20_000),
    "open quotes": (lambda n: 'turns:\n- a: "' + "b " * n, ".yaml", 20_000),
    "turns": (lambda n: "turns:\n" + many("- a: text #\n", n), ".yaml", 150),
    "undeclared speakers": (
        lambda n: "speakers:\n" + many("  speaker#: {}\n", 20) + "turns:\n" + many("- speakr#x: hi\n", n),
        ".yaml",
        150,
    ),
    "unknown fields": (
        lambda n: json.dumps({"turns": [{"speaker": "a", "text": "b", **{f"spaeker{i}": 1 for i in range(n)}}]}),
        ".json",
        600,
    ),
    "objects": (lambda n: '{"turns": [' + '{"a": ' * n, ".json", 20_000),
    "spaces after a comma": (lambda n: '{"turns": [1,' + " " * n + "x", ".json", 50_000),
    "closing braces": (lambda n: "{" + "} " * n + "x", ".txt", 20_000),
}
MANIFESTS: dict[str, tuple[Callable[[int], str], str, int]] = {
    "columns": (lambda n: ",".join(f"c{i}" for i in range(n)) + ",text\n", ".csv", MAX_COLUMNS * 10),
    "rows with unknown columns": (lambda n: "text,b,c,d\n" + many("hi,1,2,3\n", n), ".csv", 40),
    "cells in quotes": (lambda n: 'text\n"' + '""' * n, ".csv", 20_000),
    "lines": (lambda n: many('{"text": "line #"}\n', n), ".jsonl", 100),
    "speakers without a table": (lambda n: many('{"text": "hi", "speaker": "name #"}\n', n), ".jsonl", 80),
}


def budget(read: Callable[[str], object], folder: Path, case: tuple[Callable[[int], str], str, int]) -> None:
    write, suffix, n = case
    for size in (n, 8 * n):
        (folder / f"{size}{suffix}").write_text(write(size))
    assert_linear(lambda size: read(str(folder / f"{size}{suffix}")), n)


@pytest.mark.parametrize("case", IMPORTED.values(), ids=IMPORTED)
def test_importers(case: tuple[Callable[[int], str], str, int], tmp_path: Path) -> None:
    budget(convert, tmp_path, case)


@pytest.mark.parametrize("case", SCRIPTS.values(), ids=SCRIPTS)
def test_scripts(case: tuple[Callable[[int], str], str, int], tmp_path: Path) -> None:
    budget(read_script, tmp_path, case)


@pytest.mark.parametrize("case", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests(case: tuple[Callable[[int], str], str, int], tmp_path: Path) -> None:
    budget(read_manifest, tmp_path, case)


def test_tags_of_say() -> None:
    assert_linear(lambda n: parse_say("[1]\n" * n, 0), 1000)


def test_equals_signs_in_the_text_of_a_voice(tmp_path: Path) -> None:
    write_tone(tmp_path / "v.wav", 1.0)

    def read(n: int) -> object:
        (tmp_path / "v.txt").write_text("=" * n)
        return parse_voice(str(tmp_path / "v.wav"), 0)

    assert_linear(read, 20_000)
