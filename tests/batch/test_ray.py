"""`csm batch --executor ray` on hosts that are network namespaces: each line once, whatever is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.ray_cluster import Cluster, missing
from helpers.run import Result

Csm = Callable[..., Result]
COUNT = 600

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    made = Cluster(2)
    yield made
    made.close()


def manifest(folder: Path, count: int) -> Path:
    path = folder / "lines.jsonl"
    lines = [
        {"id": f"l{n:03d}", "speaker": n % 8, "text": ("No.", "Yes!", "Why?", "Go on.")[n % 4]} for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def recorded(folder: Path) -> list[str]:
    path = folder / "results.jsonl"
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(folder: Path, count: int, run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while len(recorded(folder)) < count:
        assert run.poll() is None, f"ended with {run.returncode} after {len(recorded(folder))} lines"
        assert time.monotonic() < deadline, f"{len(recorded(folder))} of {count} lines"
        time.sleep(0.2)


def test_600_lines_survive_the_loss_of_a_worker_a_node_the_network_and_the_driver(
    csm: Csm, cluster: Cluster, tmp_path: Path
) -> None:
    path, one, folder = manifest(tmp_path, COUNT), tmp_path / "one", tmp_path / "ray"
    log = tmp_path / "log"
    options = ["--batch-size", "2", "--device", "cpu", "--max-duration", "2"]
    command = [sys.executable, "-m", "csm_cli", "batch", str(path), "-o", f"{folder}/{{id}}.wav", *options]
    command += ["--executor", "ray", "--ray-address", cluster.address, "--workers", "2"]
    first, second = cluster.nodes
    with log.open("w") as errors:
        run = cluster.head.start(command, stdout=subprocess.DEVNULL, stderr=errors)
        wait_for(folder, 60, run)
        assert first.kill("RayWorker") == 1
        wait_for(folder, 150, run)
        assert second.kill() > 3
        cluster.join(second)
        wait_for(folder, 270, run)
        first.cut(20)
        wait_for(folder, 390, run)
        cluster.head.kill("csm_cli")
        run.wait()
        assert len(recorded(folder)) < COUNT
        last = cluster.head.start(command, stdout=subprocess.DEVNULL, stderr=errors)
        assert last.wait(300) == 0, log.read_text()[-2000:]
    assert csm("batch", path, "-o", one / "{id}.wav", *options).code == 0
    assert sorted(recorded(folder)) == sorted(recorded(one)) == sorted(f"l{n:03d}" for n in range(COUNT))
    for file in one.glob("*.wav"):
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name
    assert not [each.name for each in folder.glob(".csm-probe*")]
    lines = log.read_text()
    assert "handed out again" in lines and "Traceback" not in lines
