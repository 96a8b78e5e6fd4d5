"""`csm batch --workers`: the same files and results as one process, whatever dies."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run import Result, allow_sigint
from helpers.workers import assert_ended

Csm = Callable[..., Result]
LENGTHS = (6, 30, 12, 60)


def manifest(folder: Path, count: int) -> Path:
    path = folder / "lines.jsonl"
    lines = [{"id": f"l{n}", "text": "word " * (1 + LENGTHS[n % 4] // 6)} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(checkpoint: Path, path: Path, folder: Path, *flags: object) -> list[str]:
    run = ["batch", path, "-o", folder / "{id}.wav", "--model", checkpoint, "--max-duration", "0.8", "--no-trim"]
    return [str(each) for each in (*run, "--device", "cpu", *flags)]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by id; each exactly once."""
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len({record["id"] for record in records}) == len(records)
    return {record["id"]: record for record in records}


def assert_same(one: Path, other: Path) -> None:
    assert {path.name for path in one.glob("*.wav")} == {path.name for path in other.glob("*.wav")}
    for path in one.glob("*.wav"):
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    first, second = results(one), results(other)
    for records in (first, second):
        for record in records.values():
            del record["output"], record["elapsed_s"]
            for turn in record["turns"]:
                for take in turn["takes"]:
                    take.pop("seconds", None)
    assert first == second


def test_two_workers_give_what_one_process_gives(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, 6)
    one, two = tmp_path / "one", tmp_path / "two"
    assert csm(*arguments(tiny_checkpoint, path, one)).code == 0
    result = csm(*arguments(tiny_checkpoint, path, two, "--workers", 2, "--json"))
    assert result.code == 0 and len(result.out.splitlines()) == 6
    assert "2 workers" in result.err
    assert re.search(r"model loaded after [\d.]+, [\d.]+ s, first file after [\d.]+", result.err)
    assert_same(one, two)
    again = csm(*arguments(tiny_checkpoint, path, two, "--workers", 2))
    assert again.code == 0 and "6 reused" in again.err


@pytest.mark.parametrize("count", ["0", "-1", "many", "1.5", "99999", ""])
def test_an_impossible_number_of_workers_is_refused(csm: Csm, tmp_path: Path, count: str) -> None:
    result = csm("batch", manifest(tmp_path, 1), "-o", tmp_path / "out" / "{id}.wav", "--workers", count)
    assert result.code == 2 and "--workers" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--executor", "threads"),
        ("--ray-address", "a:1"),
        ("--cpus-per-worker", 2),
        ("--workers", 1, "--ray-address", "a:1"),
    ],
    ids=str,
)
def test_flags_of_another_executor_are_refused(csm: Csm, tmp_path: Path, flags: tuple[object, ...]) -> None:
    result = csm("batch", manifest(tmp_path, 1), "-o", tmp_path / "out" / "{id}.wav", *flags)
    assert result.code == 2 and str(flags[-2]) in result.err


def test_ray_is_named_where_it_is_missing(csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = csm("batch", manifest(tmp_path, 1), "-o", tmp_path / "out" / "{id}.wav", "--executor", "ray")
    assert result.code == 2 and "csm-cli[ray]" in result.err


def test_an_error_of_a_worker_is_one_line(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    flags = ("--workers", 1, "--fail-fast", "--max-duration", "0")
    result = csm(*arguments(tiny_checkpoint, path, tmp_path / "out", *flags))
    assert "Traceback" not in result.err and len(result.err.splitlines()) < 8


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "csm_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=allow_sigint,
    )


def children(pid: int) -> list[int]:
    """Worker processes of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(path.name))
    return found


@pytest.mark.slow
def test_killed_workers_and_a_killed_parent_leave_one_result_of_each_item(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = manifest(tmp_path, 60)
    one, two = tmp_path / "one", tmp_path / "two"
    assert csm(*arguments(tiny_checkpoint, path, one)).code == 0
    command = arguments(tiny_checkpoint, path, two, "--workers", 2, "--batch-size", 2)
    with start(command) as first:
        assert first.stdout
        for _ in range(5):
            first.stdout.readline()
        os.kill(children(first.pid)[0], signal.SIGKILL)
        for _ in range(10):
            first.stdout.readline()
        workers = children(first.pid)
        first.kill()
    assert_ended(workers)
    last = csm(*command)
    assert last.code == 0 and re.search(r"\d+ reused", last.err)
    assert_same(one, two)


@pytest.mark.slow
def test_an_interrupt_finishes_what_is_in_progress(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, folder = manifest(tmp_path, 200), tmp_path / "out"
    command = arguments(tiny_checkpoint, path, folder, "--workers", 2, "--batch-size", 2)
    with start(command) as run:
        assert run.stdout and run.stderr
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err
    written = {path.stem for path in folder.glob("*.wav")}
    assert written == set(results(folder)) and 1 < len(written) < 100
    assert not children(run.pid)
