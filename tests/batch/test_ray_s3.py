"""`csm batch --executor ray` with outputs in S3, on hosts that are network namespaces; the driver is killed once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.ray_cluster import GATEWAY, Cluster, missing
from helpers.run import Result
from helpers.s3 import S3, needs_server, s3_server

pytest.importorskip("s3fs")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, needs_server]
COUNT, TIMEOUT = 48, 300
FLAGS = ["--batch-size", "1", "--device", "cpu", "--max-duration", "1", "-q"]
BATCH = [sys.executable, "-m", "csm_cli", "batch"]


@pytest.fixture
def server() -> Iterator[S3]:
    if reason := missing():
        pytest.skip(reason)
    with s3_server() as running:
        yield running


@pytest.fixture
def cluster(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in server.environment(host=GATEWAY).items():
        monkeypatch.setenv(name, value)  # for the workers too, which are started with the nodes
    made = Cluster(2)
    try:
        yield made
    finally:
        made.close()


def test_workers_upload_and_the_driver_resumes(cluster: Cluster, server: S3, tmp_path: Path) -> None:
    manifest = tmp_path / "lines.jsonl"
    rows = [{"id": f"l{n}", "speaker": n % 8, "text": ("No.", "Yes!", "Why?", "Go on.")[n % 4]} for n in range(COUNT)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = [*BATCH, str(manifest), "-o", str(tmp_path / "one" / "{id}.wav"), *FLAGS]
    assert subprocess.run(local, stdout=subprocess.DEVNULL, timeout=TIMEOUT).returncode == 0
    ray = ["--executor", "ray", "--ray-address", cluster.address, "--workers", "2"]
    command = [*BATCH, str(manifest), "-o", "s3://bucket/out/{id}.wav", *FLAGS, *ray]
    with cluster.head.start(command, stdout=subprocess.DEVNULL, cwd=tmp_path) as first:
        deadline = time.monotonic() + TIMEOUT
        while sum("/.results/" in name for name in server.system.find("bucket/out/")) < 1:
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        assert cluster.head.kill("csm_cli")
    found = server.files("out")
    done = {json.loads(line)["id"] for name in found if ".results/" in name for line in found[name].splitlines()}
    assert done and {f"{each}.wav" for each in done} <= found.keys()
    last = cluster.head.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    result = Result(0, *last.communicate(timeout=TIMEOUT))
    assert last.returncode == 0, result.err
    assert len(result.out.splitlines()) == COUNT - len(done), "what is recorded is not generated again"
    files = server.files("out")
    results = [json.loads(line)["id"] for line in files.pop("results.jsonl").splitlines()]
    assert Counter(results) == Counter(f"l{n}" for n in range(COUNT))
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.wav")}
