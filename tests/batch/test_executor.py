"""Worker processes: each item once, whatever dies; nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.workers import KILLS, KILLS_ONCE, StubTask, assert_ended, is_running, make_items

from csm_cli.batch.items import BatchItem
from csm_cli.batch.processes import ProcessExecutor
from csm_cli.batch.results import ItemResult, WorkerPlace
from csm_cli.errors import DeviceMissing, WorkerLost

Lines = list[str]


def run(task: StubTask, items: list[BatchItem], lines: Lines, workers: int = 2) -> list[ItemResult]:
    executor = ProcessExecutor(task, [WorkerPlace()] * workers, lines.append)
    return list(executor.results(iter(items), len(items)))


def assert_each_once(results: list[ItemResult], items: list[BatchItem]) -> None:
    assert Counter(result.id for result in results) == Counter(item.id for item in items)
    for item in items:
        assert not item.path.exists() or item.path.read_text() == item.conversation.turns[0].text


def test_workers_share_the_items(tmp_path: Path) -> None:
    items, lines = make_items(tmp_path, 40), Lines()
    results = run(StubTask(0.02), items, lines)
    assert_each_once(results, items)
    assert all(result.ok and not result.files for result in results), "files are on disk"
    pids = {result.record["pid"] for result in results}
    assert len(pids) == 2 and os.getpid() not in pids and not any(map(is_running, pids))
    assert not lines


def test_items_of_a_killed_worker_are_generated_by_another(tmp_path: Path) -> None:
    items, lines = make_items(tmp_path, 20, i3=KILLS_ONCE), Lines()
    results = run(StubTask(0.01), items, lines)
    assert_each_once(results, items)
    assert all(result.ok for result in results)
    assert len(lines) == 1 and "SIGKILL" in lines[0]


def test_an_item_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    items, lines = make_items(tmp_path, 12, i4=KILLS), Lines()
    results = run(StubTask(), items, lines)
    assert_each_once(results, items)
    assert {result.id: result.record.get("error_class") for result in results if not result.ok} == {"i4": "WorkerLost"}
    assert len(lines) == 3


def test_workers_that_die_before_any_item_end_the_run(tmp_path: Path) -> None:
    lines = Lines()
    with pytest.raises(WorkerLost, match="exit code 3"):
        run(StubTask(exit_code=3), make_items(tmp_path, 4), lines, workers=1)
    assert len(lines) == 4


def test_an_error_of_a_worker_is_the_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(DeviceMissing, match="no device"):
        run(StubTask(error=DeviceMissing("no device")), make_items(tmp_path, 4), Lines())


def test_a_drained_run_finishes_what_is_in_progress(tmp_path: Path) -> None:
    items, lines = make_items(tmp_path, 200), Lines()
    executor = ProcessExecutor(StubTask(0.02), [WorkerPlace()] * 2, lines.append)
    results = []
    with pytest.raises(KeyboardInterrupt):
        for result in executor.results(iter(items), len(items)):
            results.append(result)
            if len(results) == 5:
                executor.request_drain()
    names = {path.name for path in tmp_path.iterdir()}
    assert 5 <= len(results) < 100 and names == {result.id for result in results}


def test_a_run_that_is_left_early_leaves_no_process(tmp_path: Path) -> None:
    executor = ProcessExecutor(StubTask(0.01), [WorkerPlace()] * 2, print)
    results = executor.results(iter(make_items(tmp_path, 50)), 50)
    pid = next(results).record["pid"]
    results.close()
    assert not is_running(pid)


PARENT = """
import sys
from pathlib import Path
from helpers.workers import StubTask, make_items
from csm_cli.batch.processes import ProcessExecutor
from csm_cli.batch.results import WorkerPlace

if __name__ == "__main__":
    executor = ProcessExecutor(StubTask(0.05), [WorkerPlace()] * 2, print)
    for result in executor.results(iter(make_items(Path(sys.argv[1]), 5000)), 5000):
        print(result.record["pid"], flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "out").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        pids: set[int] = set()
        while len(pids) < 2:
            pids.add(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    assert_ended(pids)


def test_commands_without_workers_import_no_executor() -> None:
    code = (
        "import sys, csm_cli.cli.app, csm_cli.cli.batch; print([each for each in sys.modules if each in "
        "('csm_cli.batch.executor', 'csm_cli.batch.processes', 'multiprocessing', 'ray')])"
    )
    found: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
