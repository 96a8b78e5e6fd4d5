"""The job scripts of `samples/slurm`, run with stand-ins for Slurm's and Ray's programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.run import Result

Csm = Callable[..., Result]
SAMPLES = Path(__file__).parents[2] / "samples" / "slurm"
PROGRAMS = {
    "csm": 'exec "$PYTHON" -m csm_cli "$@"',
    "hostname": "echo 10.0.0.1 10.1.0.1",
    "ray": """
echo "ray $*" >> "$CALLS"
case $1 in
    status) nodes=(node-*); [ -e "${nodes[0]}" ] || exit 1; echo " 0.0/$((8 * ${#nodes[@]})).0 GPU" ;;
    start) touch "node-$$"; exec sleep 60 ;;
esac
""",
    "scontrol": "printf 'node1\\nnode2\\n'",
    "srun": """
while [[ $1 == -* ]]; do [ "$1" = -w ] && shift; shift; done
exec "$@"
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with these programs; calls of Ray are in the file that CALLS names."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CSM_", "SLURM_"))}
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return clean | paths | {"PYTHON": sys.executable, "CALLS": str(tmp_path / "calls"), "CSM_HOME": str(tmp_path)}


def submit(script: str, environment: dict[str, str], folder: Path) -> None:
    command = ["bash", str(SAMPLES / script), "lines.jsonl"]
    with subprocess.Popen(command, env=environment, cwd=folder, text=True, start_new_session=True) as job:
        try:
            assert job.wait(120) == 0
        finally:  # Slurm ends what a job leaves running
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def test_tasks_of_an_array_with_holes_leave_a_plan(
    csm: Csm, slurm: dict[str, str], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"id": f"l{number}", "text": "Hello.", "max_duration": 0.4} for number in range(1, 17)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    submit("array.sbatch", slurm | {"SLURM_ARRAY_TASK_ID": "2", "CSM_MODEL": str(tiny_checkpoint)}, tmp_path)
    assert {path.name for path in (tmp_path / "out" / "2").glob("*.wav")} == {"l2.wav", "l10.wav"}
    monkeypatch.chdir(tmp_path)
    plan = "batch", "lines.jsonl", "-o", "out/{shard}/{id}.wav", "--shard", "slurm/8", "--plan"
    assert "sbatch --array=1,3-8\n" in csm(*plan, "--model", tiny_checkpoint).out
    found = csm(*plan, "--model", tiny_checkpoint, "--json").json
    assert found["unfinished"] == "1,3-8" and [each["done"] for each in found["shards"]] == [0, 2, 0, 0, 0, 0, 0, 0]


def test_ray_runs_on_all_nodes_of_an_allocation(slurm: dict[str, str], tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "programs" / "csm").write_text('#!/bin/bash\necho "csm $*" >> "$CALLS"\n')
    sizes = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    submit("ray.sbatch", slurm | sizes | {"SLURM_CPUS_PER_TASK": "64"}, tmp_path)
    lines = [line for line in calls.read_text().splitlines() if not line.startswith("ray status")]
    assert lines[0] == "ray start --block --num-cpus=64 --num-gpus=8 --head --port=6379"
    assert lines[1] == "ray start --block --num-cpus=64 --num-gpus=8 --address=10.0.0.1:6379"
    assert lines[2:] == [
        "csm batch lines.jsonl -o out/{id}.wav --executor ray --ray-address 10.0.0.1:6379 --offline -q"
    ]
