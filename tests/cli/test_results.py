"""csm results: a batch in numbers, whatever state its results are in."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm_cli.batch.overview import read_overview
from csm_cli.errors import InputError
from csm_cli.storage.outputs import LocalOutputs

Csm = Callable[..., Any]


def result(name: str, **fields: Any) -> dict[str, Any]:
    turn = {"speaker": "ana", "voice": "ash", "text": "Hello, you.", "takes": [{}, {}]}
    good = {"file": f"{name}.wav", "duration_s": 1.5, "elapsed_s": 3.0, "loudness": {"lufs": -20.0}, "warnings": []}
    return {"schema": 2, "id": name, "status": "ok", **good, "turns": [turn], **fields}


def failure(name: str, **fields: Any) -> dict[str, Any]:
    turn = {"speaker": "ben", "text": "Never said."}
    error = {"error": "came out silent with seed 3", "error_class": "generation_failed", "seeds_tried": [3, 4]}
    return {"schema": 2, "id": name, "status": "failed", **error, "turns": [turn], **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three items; b failed and was then spoken, c has a column of its manifest."""
    write(tmp_path, result("a"), failure("b"), failure("c", extra={"scene": "1, indoors"}), result("b", elapsed_s=9.0))
    return tmp_path


def write(folder: Path, *records: Any, tail: str = "") -> None:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    (folder / "results.jsonl").write_text("\n".join([*lines, tail]), encoding="utf-8")


def test_totals_failures_and_the_slowest_are_printed(csm: Csm, folder: Path) -> None:
    done = csm("results", folder)
    assert done.code == 0 and not done.err
    first, *lines = done.out.splitlines()
    assert "3 items" in first and "2 ok" in first and "1 failed" in first and "3.0 s of audio" in first
    assert any("c: " in line and "Never said." in line and "came out silent" in line for line in lines)
    assert next(line for line in lines if "9.0 s" in line).strip().startswith("b:")


def test_json_has_the_newest_result_of_each_item(csm: Csm, folder: Path) -> None:
    found = csm("results", folder, "--json", "--slowest", 1).json
    assert (found["items"], found["ok"], found["failed"], found["retried"]) == (3, 2, 1, 3)
    assert found["reasons"] == {"generation_failed": 1} and [each["id"] for each in found["failures"]] == ["c"]
    assert [each["id"] for each in found["slowest"]] == ["b"] and found["lufs"] == [-20.0, -20.0]


def test_csv_has_every_item_with_the_columns_of_the_manifest(csm: Csm, folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(csm("results", folder / "results.jsonl", "--csv").out)))
    assert [(row["id"], row["status"], row["voice"]) for row in rows] == [
        ("a", "ok", "ash"),
        ("b", "ok", "ash"),
        ("c", "failed", ""),
    ]
    assert rows[2]["scene"] == "1, indoors" and rows[0]["lufs"] == "-20.0" and rows[2]["error_class"]


def test_a_cut_off_line_a_foreign_line_and_an_older_schema_are_noted(csm: Csm, tmp_path: Path) -> None:
    old = {"id": "old", "status": "ok", "duration_s": "long", "turns": "none", "loudness": 3, "extra": []}
    write(tmp_path, result("a"), "nonsense", old, tail='{"schema": 2, "id": "b", "sta')
    done = csm("results", tmp_path, "--json")
    assert done.code == 0 and done.json["items"] == 2 and len(done.json["notes"]) == 3
    assert "line 2" in done.err and len(done.err.splitlines()) == 3


def test_results_can_be_read_while_a_run_has_the_lock(csm: Csm, folder: Path) -> None:
    from csm_cli.batch.ledger import Ledger

    with Ledger(LocalOutputs(folder)):
        assert csm("results", folder).code == 0


@pytest.mark.parametrize("content", [None, "garbage\n", "[]\n{}\n"])
def test_a_folder_without_results_is_one_line(csm: Csm, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    done = csm("results", tmp_path)
    assert done.code == 3 and len(done.err.splitlines()) == 1 and str(tmp_path) in done.err
    assert csm("results", tmp_path, "--csv", "--json").code == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["turns", "loudness", "extra", "warnings", "seed", "duration_s", "elapsed_s", "seeds_tried", "x"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, values), st.binary(max_size=30))
def test_any_fields_and_any_bytes_are_read_or_refused(tmp_path: Path, fields: dict[str, Any], tail: bytes) -> None:
    line = json.dumps({"id": "a", "status": "ok", **fields}).encode()
    (tmp_path / "results.jsonl").write_bytes(line + b"\n" + tail)
    overview = read_overview(tmp_path)
    assert "a" in [row.id for row in overview.rows] and overview.csv() and overview.totals()
    (tmp_path / "results.jsonl").write_bytes(tail)
    with contextlib.suppress(InputError):
        read_overview(tmp_path)


def test_a_batch_records_voice_loudness_and_time(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    manifest = tmp_path / "m.csv"
    tone.with_suffix(".txt").write_text("A tone.")
    manifest.write_text(f"id,text,speaker,voice,scene\na,Hello.,1,{tone.name},Kitchen\n")
    done = csm("batch", manifest, "-o", tmp_path / "o" / "{id}.wav", "--model", tiny_checkpoint, "--max-duration", 0.5)
    assert done.code == 0
    (row,) = read_overview(tmp_path / "o").rows
    assert (row.voice, row.extra) == (tone.name, {"scene": "Kitchen"})
    assert row.lufs is not None and row.elapsed_s and row.duration_s
