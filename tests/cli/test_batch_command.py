"""csm batch: a manifest to files."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.audio import write_tone
from helpers.run import Result

Csm = Callable[..., Result]


def item(id: str, text: str = "Hello.", **fields: Any) -> dict[str, Any]:
    return {"id": id, "speaker": 0, "text": text, "max_duration": 0.4} | fields


def manifest(folder: Path, *items: dict[str, Any]) -> Path:
    path = folder / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    return path


def run(csm: Csm, checkpoint: Path, path: Path | str, pattern: object, *flags: object) -> Result:
    return csm("batch", path, "-o", pattern, "--model", checkpoint, *flags)


def test_writes_a_file_for_each_item(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    context = [{"speaker": 1, "audio": tone.name, "text": "Hi!"}]
    turns = [{"speaker": 0, "text": "Hi", "max_duration": 0.4}, {"speaker": 1, "text": "Ho", "max_duration": 0.2}]
    path = manifest(tmp_path, item("a"), item("b", context=context), {"id": "c", "turns": turns})
    result = run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav")
    assert result.code == 0, result.err
    assert sorted(result.out.splitlines()) == [str(tmp_path / "out" / f"{name}.wav") for name in "abc"]
    assert {name: soundfile.info(tmp_path / "out" / f"{name}.wav").duration for name in "abc"} == {
        "a": 0.4,
        "b": 0.4,
        "c": 0.56,
    }
    assert "3 written" in result.err and "3 of 3" in result.err and "seed" in result.err


def test_items_sound_the_same_alone_and_together(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    items = [item(f"{n}", f"Hello number {n}.", seed=n, temperature=1.0) for n in range(5)]
    takes = []
    for size in (1, 3):
        run(csm, tiny_checkpoint, manifest(tmp_path, *items), tmp_path / f"{size}" / "{id}.wav", "--batch-size", size)
        takes.append([soundfile.read(tmp_path / f"{size}" / f"{n}.wav")[0] for n in range(5)])
    assert all(np.array_equal(alone, together) for alone, together in zip(*takes, strict=True))


def test_names_come_from_the_fields(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("x"), item("ü b"))
    assert run(csm, tiny_checkpoint, path, tmp_path / "{index:03d}-{speaker}-{id}.flac").code == 0
    assert (tmp_path / "001-0-x.flac").exists() and (tmp_path / "002-0-ü b.flac").exists()


def test_json_is_one_object_an_item(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run(csm, tiny_checkpoint, manifest(tmp_path, item("a"), item("b")), tmp_path / "{id}.wav", "--json")
    records = [json.loads(line) for line in result.out.splitlines()]
    assert {record["id"]: record["output"] for record in records} == {n: str(tmp_path / f"{n}.wav") for n in "ab"}
    assert all(record["status"] == "ok" and record["duration_s"] == 0.4 for record in records)


def test_reads_standard_input(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(item("a")).encode())))
    assert run(csm, tiny_checkpoint, "-", tmp_path / "{id}.wav").code == 0 and (tmp_path / "a.wav").exists()


def test_a_failed_item_is_one_line_and_the_rest_go_on(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    bad = item("bad", max_duration=100)
    result = run(csm, tiny_checkpoint, manifest(tmp_path, item("a"), bad, item("b")), tmp_path / "{id}.wav", "--json")
    assert result.code == 5
    assert (tmp_path / "a.wav").exists() and (tmp_path / "b.wav").exists() and not (tmp_path / "bad.wav").exists()
    failures = [line for line in result.err.splitlines() if line.startswith("csm: bad: turn 1")]
    assert len(failures) == 1 and "too long" in failures[0]
    assert "1 of 3" in result.err.splitlines()[-1]
    printed = [json.loads(line) for line in result.out.splitlines()]
    assert [record["status"] for record in printed if record["id"] == "bad"] == ["failed"]


def test_exit_code_is_1_if_all_items_fail(csm: Csm, silent_checkpoint: Path, tmp_path: Path) -> None:
    result = run(csm, silent_checkpoint, manifest(tmp_path, item("a"), item("b")), tmp_path / "{id}.wav")
    assert result.code == 1 and result.err.count("came out empty") == 2 and not list(tmp_path.glob("*.wav"))


@pytest.mark.parametrize(
    ("pattern", "ids", "code", "message"),
    [
        ("out.wav", "ab", 3, "put {id} into -o"),
        ("{id.__class__}.wav", "ab", 2, "unknown field"),
        ("{}.wav", "ab", 2, "unknown field"),
        ("{name}.wav", "ab", 2, "{id}, {index}, {speaker}, {shard}"),
        ("{id.wav", "ab", 2, "csm: -o"),
        ("{id:d}.wav", "ab", 2, "csm: -o"),
        ("{index:{width}}.wav", "ab", 2, "csm: -o"),
        ("{id}.doc", "ab", 2, ".doc"),
        ("-", "ab", 2, "batch writes files"),
        ("x" * 300 + "{id}.wav", "ab", 2, "too long"),
    ],
)
def test_outputs_are_refused_before_anything_is_loaded(
    csm: Csm, tmp_path: Path, pattern: str, ids: str, code: int, message: str
) -> None:
    path = manifest(tmp_path, *(item(name) for name in ids))
    result = run(csm, tmp_path / "none", path, tmp_path / pattern if pattern != "-" else "-")
    assert result.code == code and message in result.err
    assert "loading" not in result.err and len(result.err.splitlines()) == 1 and not result.out


@pytest.mark.parametrize(
    ("context", "row", "file"),
    [
        ((None, "b.wav"), "b", "b.wav"),
        (("b.wav", None), "b", "b.wav"),
        ((None, "a.wav"), "b", "a.wav"),
        (("other/../a.wav", None), "a", "a.wav"),
        ((None, "link.wav"), "b", "link.wav"),
    ],
)
def test_no_row_replaces_an_input_of_another(
    csm: Csm, tmp_path: Path, context: tuple[str | None, str | None], row: str, file: str
) -> None:
    before = write_tone(tmp_path / "a.wav").read_bytes()
    write_tone(tmp_path / "b.wav")
    (tmp_path / "other").mkdir()
    (tmp_path / "link.wav").symlink_to("a.wav")
    past = [{"context": [{"speaker": 1, "audio": name, "text": "Hi!"}]} if name else {} for name in context]
    path = manifest(tmp_path, item("a", **past[0]), item("b", **past[1]))
    result = run(csm, tmp_path / "none", path, tmp_path / "{id}.wav")
    assert result.code == 2 and f'"{row}"' in result.err and str(tmp_path / file) in result.err
    assert (tmp_path / "a.wav").read_bytes() == before


def test_a_batch_may_read_outputs_of_another(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(csm, tiny_checkpoint, manifest(tmp_path, item("a")), tmp_path / "{id}.wav")
    context = [{"speaker": 1, "audio": "a.wav", "text": "Hello."}]
    goes_on = run(csm, tiny_checkpoint, manifest(tmp_path, item("b", context=context)), tmp_path / "{id}.wav")
    assert goes_on.code == 0 and (tmp_path / "b.wav").exists()
    both = manifest(tmp_path, item("a"), item("b", context=context))
    assert '"b" reads' in run(csm, tiny_checkpoint, both, tmp_path / "{id}.wav").err  # though "a" is done


def test_the_manifest_is_not_replaced(csm: Csm, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a")).rename(tmp_path / "a.wav")
    result = run(csm, tmp_path / "none", path, tmp_path / "{id}.wav")
    assert result.code == 2 and '"a"' in result.err and str(path) in result.err and path.read_text().startswith("{")


def test_two_names_of_one_file_are_refused(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b", target_is_directory=True)
    result = run(csm, tmp_path / "none", manifest(tmp_path, item("a"), item("b")), tmp_path / "{id}" / "x.wav")
    assert result.code == 3 and "put {id} into -o" in result.err


def test_rows_have_their_own_voices(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a", seed=1, voice="ash"), item("b", seed=1, voice="birch"), item("c", seed=1))
    run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav")
    assert len({soundfile.read(tmp_path / f"{name}.wav")[0].tobytes() for name in "abc"}) == 3


def test_a_flag_overrides_the_rows(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, *(item(f"{n}", max_duration=0.16) for n in range(4)))
    done = run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", "--max-duration", "0.24", "--json")
    assert [json.loads(line)["duration_s"] for line in done.out.splitlines()] == [0.24] * 4


def test_no_output_is_a_usage_error(csm: Csm, tmp_path: Path) -> None:
    result = csm("batch", manifest(tmp_path, item("a")))
    assert result.code == 2 and "-o 'out/{id}.wav'" in result.err


def test_quiet_prints_paths_only(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = run(csm, tiny_checkpoint, manifest(tmp_path, item("a")), tmp_path / "{id}.wav", "-q")
    assert result.out == f"{tmp_path / 'a.wav'}\n"
    assert all("maximum duration" in line for line in result.err.splitlines())


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_results_are_recorded_beside_the_files(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a", seed=5), item("bad", max_duration=100))
    output = run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav", "--json").out
    recorded = {record.pop("id"): record for record in results(tmp_path / "out")}
    assert recorded["a"].pop("file") == "a.wav"
    good = recorded["a"]
    assert good["status"] == "ok" and good["output"] == str(tmp_path / "out" / "a.wav") and good["duration_s"] == 0.4
    assert good["seed"] == 5 and good["stop"] == "cap" and "rtf" not in good and len(good["warnings"]) == 1
    assert recorded["bad"]["status"] == "failed" and "too long" in recorded["bad"]["error"]
    assert all(record.pop("fingerprint") for record in recorded.values())
    assert {record.pop("schema") for record in recorded.values()} == {2}
    assert {record.pop("id"): record for record in map(json.loads, output.splitlines())} == recorded


def test_a_rerun_generates_only_missing_items(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    context = [{"speaker": 1, "audio": tone.name, "text": "Hi!"}]
    items = [item("a"), item("b", context=context), item("c"), item("d")]

    def again(*flags: object) -> set[str]:
        done = run(csm, tiny_checkpoint, manifest(tmp_path, *items), tmp_path / "out" / "{id}.wav", *flags)
        assert done.code == 0, done.err
        return {Path(line).stem for line in done.out.splitlines()}

    assert again() == set("abcd")
    assert again() == set()
    (tmp_path / "out" / "d.wav").unlink()
    items[2] |= {"text": "Hello!"}
    assert again() == set("cd")
    write_tone(tone, 0.4)
    assert again() == {"b"}
    assert again("--temperature", "1") == set("abcd")
    assert again("--temperature", "1") == set()
    assert again("--temperature", "1", "--force") == set("abcd")


def test_a_rerun_with_nothing_to_do_loads_no_weights(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest(tmp_path, item("a"))
    run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav")
    monkeypatch.setattr("csm_cli.generation.synthesizer.Synthesizer", None)
    for flags, count in (([], "1 reused"), (["--retry-failed"], "1 reused"), (["--shard", "2/2"], "none")):
        again = run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", *flags)
        assert again.code == 0 and not again.out
        (line,) = again.err.splitlines()
        assert line.startswith("nothing to speak; ") and line.endswith(count)


def test_derived_seeds_are_the_same_in_every_run(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a", temperature=1.0), item("b", temperature=1.0))
    takes = []
    for name in ("one", "two"):
        assert run(csm, tiny_checkpoint, path, tmp_path / name / "{id}.wav").code == 0
        takes.append([(tmp_path / name / f"{each}.wav").read_bytes() for each in "ab"])
    assert takes[0] == takes[1] and takes[0][0] != takes[0][1]


def test_failed_items_are_retried(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pattern = tmp_path / "{id}.wav"
    assert run(csm, tiny_checkpoint, manifest(tmp_path, item("a"), item("b", max_duration=100)), pattern).code == 5
    path = manifest(tmp_path, item("a"), item("b"), item("new"))
    failed = run(csm, tiny_checkpoint, path, pattern, "--retry-failed")
    assert failed.code == 0 and failed.out == f"{tmp_path / 'b.wav'}\n"
    assert run(csm, tiny_checkpoint, path, pattern).out == f"{tmp_path / 'new.wav'}\n"


def test_a_retry_uses_seeds_not_tried_yet(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, {"id": "endless", "speaker": 0, "text": "Hi.", "temperature": 1.0, "seed": 5}, item("a"))
    pattern = tmp_path / "{id}.wav"
    assert run(csm, tiny_checkpoint, path, pattern, "--retries", 1).code == 5
    for _ in range(2):
        retried = run(csm, tiny_checkpoint, path, pattern, "--retry-failed", "--retries", 1)
        assert retried.code == 5 and not retried.out
    tried = [record["seeds_tried"] for record in results(tmp_path) if record["status"] == "failed"]
    assert tried == [[5, 6], [7, 8], [9, 10]]


@pytest.mark.parametrize(("flags", "failures"), [(["--fail-fast"], 1), (["--max-failures", 2], 2), ([], 4)])
def test_a_run_stops_after_the_allowed_failures(
    csm: Csm, silent_checkpoint: Path, tmp_path: Path, flags: list[object], failures: int
) -> None:
    path = manifest(tmp_path, *(item(name) for name in "abcd"))
    result = run(csm, silent_checkpoint, path, tmp_path / "{id}.wav", "--batch-size", 1, *flags)
    assert result.code == 1 and result.err.count("came out empty") == failures == len(results(tmp_path))
    assert ("were not tried" in result.err) is (failures < 4)


def test_a_limit_leaves_the_rest_for_later(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, *(item(name) for name in "abc"))
    first = run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", "--limit", 2)
    assert first.code == 0 and "1 left" in first.err and len(first.out.splitlines()) == 2
    assert run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", "--limit", 2).out == f"{tmp_path / 'c.wav'}\n"


@pytest.mark.parametrize("size", [1, 4])
def test_the_same_bytes_at_once_resumed_and_in_shards(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, size: int
) -> None:
    path = manifest(tmp_path, *(item(f"{n}", f"Hello {'again ' * n}.", temperature=1.0) for n in range(7)))

    def spoken(name: str, *flags: object) -> None:
        done = run(csm, tiny_checkpoint, path, tmp_path / name / "{id}.wav", "--batch-size", size, *flags)
        assert done.code == 0, done.err

    spoken("whole")
    spoken("resumed", "--limit", 3)
    spoken("resumed")
    spoken("part-{shard}", "--shard", "1/2")
    spoken("part-{shard}", "--shard", "2/2")
    whole = {file.name: file.read_bytes() for file in tmp_path.glob("whole/*.wav")}
    assert len(whole) == 7
    assert {file.name: file.read_bytes() for file in tmp_path.glob("resumed/*.wav")} == whole
    assert {file.name: file.read_bytes() for file in tmp_path.glob("part-*/*.wav")} == whole
    assert [len(results(tmp_path / f"part-{n}")) for n in (1, 2)] == [4, 3]
    merged = csm("merge", tmp_path / "part-1", tmp_path / "part-2", "-o", tmp_path / "all")
    assert (
        merged.code == 0
        and merged.out == f"{tmp_path / 'all' / 'results.jsonl'}\n"
        and len(results(tmp_path / "all")) == 7
    )
    again = run(csm, tiny_checkpoint, path, tmp_path / "all" / "{id}.wav")
    assert again.code == 0 and not again.out


@pytest.mark.parametrize("text", ["0", "-1", "1025", "many", "", "1.5", "²"])
def test_an_impossible_batch_size_is_refused(csm: Csm, tmp_path: Path, text: str) -> None:
    result = run(csm, tmp_path / "none", manifest(tmp_path, item("a")), tmp_path / "{id}.wav", "--batch-size", text)
    assert result.code == 2 and "--batch-size" in result.err and "loading" not in result.err


def test_the_automatic_batch_size_is_reported(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    log = run(csm, tiny_checkpoint, manifest(tmp_path, item("a")), tmp_path / "{id}.wav").err
    assert re.search(r"up to \d items at once \(--batch-size auto: .* MB per item\)", log)


def page_rows(path: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script id="data"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_a_report_shows_all_that_is_recorded(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a"), item("bad", max_duration=100), item("b", "</script>"))
    report = tmp_path / "pages" / "report.html"
    for _ in range(2):  # the second run speaks nothing but the failure
        assert run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav", "--report", report).code == 5
        rows = {row["id"]: row for row in page_rows(report)}
        assert {name: row["status"] for name, row in rows.items()} == {"a": "ok", "b": "ok", "bad": "failed"}
        assert rows["b"]["text"] == "</script>" and rows["a"]["audio"] == "../out/a.wav" and rows["a"]["picture"]
        assert list(rows) == ["a", "bad", "b"]  # as in the manifest
        assert "too long" in rows["bad"]["warnings"][0] and rows["bad"]["speaker"] == "0"


def test_a_report_says_what_is_new_and_may_hold_its_audio(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, report = manifest(tmp_path, item("ü a"), item("b")), tmp_path / "pages" / "report.html"
    options = ("--report", report, "--embed")
    run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav", "--limit", 1)
    assert run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav", *options).code == 0
    rows = page_rows(report)
    assert [row["badge"] for row in rows] == ["kept", "new"]
    assert all(row["audio"].startswith("data:audio/flac;base64,") and row["lufs"] is not None for row in rows)
    refused = run(csm, tiny_checkpoint, path, tmp_path / "out" / "{id}.wav", "--embed")
    assert refused.code == 2 and "--report" in refused.err


@pytest.mark.parametrize("name", ["report.pdf", "folder", "file.txt/report.html", "folder.html"])
def test_an_impossible_report_is_refused(csm: Csm, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file.txt").touch()
    path = manifest(tmp_path, item("a"))
    result = run(csm, tmp_path / "none", path, tmp_path / "{id}.wav", "--report", tmp_path / name)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and "loading" not in result.err


def test_no_clobber_refuses_files_that_are_not_recorded(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, item("a"), item("b"))
    run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", "--limit", 1)
    (tmp_path / "b.wav").write_bytes(b"mine")
    result = run(csm, tiny_checkpoint, path, tmp_path / "{id}.wav", "--no-clobber")
    assert result.code == 2 and "b.wav" in result.err and (tmp_path / "b.wav").read_bytes() == b"mine"
