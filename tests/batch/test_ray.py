"""`csm batch --executor ray` on hosts that are network namespaces: each line once, whatever is lost.

600 lines in all, 150 for each loss. One row at a time: the files are those of one process, byte for byte.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.ray_cluster import Cluster, missing

COUNT, SHARDS = 600, 4
OPTIONS = ["--batch-size", "1", "--device", "cpu", "--max-duration", "1", "-q"]
TIMEOUT = 300  # seconds; a machine may have other work

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def batch_command(manifest: Path, folder: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "csm_cli", "batch", str(manifest), "-o", f"{folder}/{{id}}.wav"]
    return [*command, *OPTIONS, *words]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := missing():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("ray") / "lines.jsonl"
    lines = [
        {"id": f"l{n:03d}", "speaker": n % 8, "text": ("No.", "Yes!", "Why?", "Go on.")[n % 4]} for n in range(COUNT)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def one_process(manifest: Path) -> Iterator[subprocess.Popen[str]]:
    """Generates all lines beside the manifest; runs while the cluster starts."""
    with subprocess.Popen(
        batch_command(manifest, manifest.parent / "one"), stdout=subprocess.DEVNULL, text=True
    ) as run:
        yield run


@pytest.fixture(scope="module")
def cluster(manifest: Path, one_process: subprocess.Popen[str]) -> Iterator[Cluster]:
    made = Cluster(2)
    try:
        assert one_process.wait(TIMEOUT) == 0
        yield made
    finally:
        made.close()


class RayRun:
    """A part of the lines on the cluster: folder of its outputs and what it logged."""

    def __init__(self, cluster: Cluster, manifest: Path, folder: Path, shard: int) -> None:
        self.folder, self._cluster, self._manifest, self._shard = folder, cluster, manifest, shard
        self._log = folder.with_suffix(".log")
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        ray = "--executor", "ray", "--ray-address", self._cluster.address, "--workers", "2"
        command = batch_command(self._manifest, self.folder, *ray, "--shard", f"{self._shard}/{SHARDS}")
        with self._log.open("a") as log:
            self.process = self._cluster.head.start(command, stdout=subprocess.DEVNULL, stderr=log)
        return self.process

    @property
    def log(self) -> str:
        return self._log.read_text()

    def recorded(self) -> list[str]:
        path = self.folder / "results.jsonl"
        return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, count: int) -> None:
        """Waits until so many lines are recorded."""
        deadline = time.monotonic() + TIMEOUT
        while len(self.recorded()) < count:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"{len(self.recorded())} of {count} lines"
            time.sleep(0.05)

    def assert_each_line_once(self) -> None:
        assert self.process.wait(TIMEOUT) == 0, self.log
        names = [f"l{n:03d}" for n in range(COUNT)][self._shard - 1 :: SHARDS]
        assert sorted(self.recorded()) == names
        for name in names:
            reference = self._manifest.parent / "one" / f"{name}.wav"
            assert (self.folder / f"{name}.wav").read_bytes() == reference.read_bytes(), name
        assert not list(self.folder.glob(".csm-probe*"))
        assert "Traceback" not in self.log


@contextmanager
def ray_run(cluster: Cluster, manifest: Path, folder: Path, shard: int) -> Iterator[RayRun]:
    run = RayRun(cluster, manifest, folder, shard)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            cluster.head.kill("csm_cli")
            run.process.wait()


def test_a_worker_is_killed(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    with ray_run(cluster, manifest, tmp_path / "out", 1) as run:
        run.wait_for(40)
        assert cluster.nodes[0].kill("RayWorker") == 1
        run.assert_each_line_once()
        assert "handed out again" in run.log


def test_a_node_is_killed(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    with ray_run(cluster, manifest, tmp_path / "out", 2) as run:
        run.wait_for(40)
        try:
            assert cluster.nodes[1].kill() > 3
            run.assert_each_line_once()
            assert "lost with its node" in run.log
        finally:
            cluster.join(cluster.nodes[1])


def test_a_node_is_cut_off_for_20_seconds(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    with ray_run(cluster, manifest, tmp_path / "out", 3) as run:
        run.wait_for(40)
        cluster.nodes[0].cut(20)
        run.assert_each_line_once()


def test_the_driver_is_killed_and_started_again(cluster: Cluster, manifest: Path, tmp_path: Path) -> None:
    with ray_run(cluster, manifest, tmp_path / "out", 4) as run:
        run.wait_for(40)
        assert cluster.head.kill("csm_cli")
        run.process.wait()
        assert 40 <= len(run.recorded()) < COUNT // SHARDS
        run.start()
        run.assert_each_line_once()
