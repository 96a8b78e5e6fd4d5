"""Training killed, out of disk space, on damaged data, or run twice at once: one error line, no partial files."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.run import Result
from helpers.training import examples, store
from safetensors.torch import load_file

from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.store import CodedTurn, Example
from csm_cli.train.trainer import Trainer

Csm = Callable[..., Result]
STEPS = 12
# Imports once, then runs each line of arguments in a forked child, which the test kills, or which kills itself at the
# n-th file created or renamed in the run's folder.
FORK_SERVER = """
import json, os, signal, sys
import peft, csm_cli.train.run
from csm_cli.cli import main

def kill_at(folder, events):
    def hook(event, details):
        nonlocal events
        moved = event in ("os.rename", "open") and str(details[0]).startswith(folder)
        if moved and (event == "os.rename" or details[2] & (os.O_WRONLY | os.O_RDWR)):
            events -= 1
            if not events:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

for line in sys.stdin:
    config, folder, events = json.loads(line)
    child = os.fork()
    if not child:
        if events:
            sys.addaudithook(kill_at(folder, events))
        os._exit(main(["train", config, "--device", "cpu", "-q"]))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return store(tmp_path_factory.mktemp("data"), tiny_checkpoint, *examples())


@pytest.fixture
def configured(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the settings file of a run in a folder of the same name."""

    def configured(name: str, **more: object) -> Path:
        settings: dict[str, Any] = {"data": str(data), "output": str(tmp_path / name), "model": str(tiny_checkpoint)}
        settings |= {
            "steps": STEPS,
            "batch_tokens": 100,
            "depth_frame_share": 0.5,
            "token_corruption": 0.1,
            "warmup_steps": 2,
        }
        settings |= {"evaluate_every": 4, "save_every": 3, "learning_rate": 3e-3, "lora": {"rank": 2, "dropout": 0.2}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | more))
        return path

    return configured


def history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_complete(folder: Path) -> None:
    """State and adapters are complete and readable."""
    for adapter in (folder / "best", folder / "last"):
        if adapter.exists():
            assert load_file(adapter / "adapter_model.safetensors") and json.loads(
                (adapter / "adapter_config.json").read_text()
            )
    if (folder / "state.pt").exists():
        assert torch.load(folder / "state.pt", weights_only=True)["step"] <= STEPS


@contextmanager
def fork_server() -> Iterator[Callable[[Path, Path, int], tuple[int, Callable[[], int]]]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", FORK_SERVER], **pipes, text=True, env=environment) as parent:
        assert parent.stdin and parent.stdout
        lines = (line.strip() for line in parent.stdout)

        def train(config: Path, folder: Path, events: int = 0) -> tuple[int, Callable[[], int]]:
            """The child's process id, and a function that waits for its end and returns its status."""
            print(json.dumps([str(config), str(folder), events]), file=parent.stdin, flush=True)
            numbers = (int(line) for line in lines if line.isdigit())  # paths may be printed between them
            return next(numbers), lambda: next(numbers)

        try:
            yield train
        finally:
            parent.kill()


@pytest.mark.slow
def test_killed_repeatedly_it_ends_like_an_uninterrupted_run(configured: Callable[..., Path], tmp_path: Path) -> None:
    whole, killed, chance = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    with fork_server() as train:
        _, ended = train(configured("whole"), whole)
        assert ended() == 0
        config = configured("killed")
        for _ in range(2):
            child, ended = train(config, killed)
            wanted = chance.randrange(2, 4)
            before = (killed / "history.jsonl").stat().st_mtime_ns if killed.exists() else 0
            for _ in range(wanted):
                before = wait_for_change(killed / "history.jsonl", before)
            time.sleep(chance.random() * 0.05)
            os.kill(child, signal.SIGKILL)
            assert ended() == signal.SIGKILL
            assert_complete(killed)
        for events in (17, 26, 8):  # 8: during the start of the last killed run
            _, ended = train(config, killed, events)
            assert ended() == signal.SIGKILL
            assert_complete(killed)
        _, ended = train(config, killed)
        assert ended() == 0
    once, again = history(whole), history(killed)
    assert [(row["step"], row["split"]) for row in again] == [(row["step"], row["split"]) for row in once]
    figures = [
        torch.tensor(
            [[row[n] for n in sorted(row) if n not in ("split", "time")] for row in rows if row["split"] == split]
        )
        for rows in (once, again)
        for split in ("train", "held_out")
    ]
    torch.testing.assert_close(figures[2:], figures[:2], rtol=0, atol=1e-5)
    assert names(killed) == names(whole)
    for name in ("best", "last"):
        one, two = (load_file(folder / name / "adapter_model.safetensors") for folder in (whole, killed))
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def wait_for_change(path: Path, before: int, seconds: float = 240) -> int:
    """Waits until the file's modification time is after `before`; returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and (now := path.stat().st_mtime_ns) > before:
            return now
        time.sleep(0.001)
    raise AssertionError(f"{path} did not change")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(folder: Path) -> dict[str, bytes]:
    """Files that a failure must leave unchanged: the state, the adapters."""
    return {name: data for name, data in files(folder).items() if name.startswith(("state", "last", "best"))}


def error_line(result: Result) -> str:
    """The error line, of which there is exactly one."""
    lines = [line for line in result.err.splitlines() if line.startswith(("csm: ", "Traceback", "Exception"))]
    assert result.err.endswith(lines[0] + "\n") and len(lines) == 1
    return lines[0]


def interrupt_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends SIGINT in that step."""
    update = Trainer.update

    def stopping(self: Trainer, *arguments: Any) -> dict[str, float]:
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", stopping)


@pytest.fixture
def started(csm: Csm, configured: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run interrupted after four steps, the last of which was evaluated and saved."""
    config = configured("run")
    with monkeypatch.context() as patched:
        interrupt_in(4, patched)
        assert csm("train", config, "--device", "cpu").code == 130
    return config


@pytest.mark.parametrize("call", [1, 3, 4, 6])
def test_full_disk_ends_the_run_and_the_next_resumes(
    csm: Csm, started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """fsync fails from its `call`-th call on."""
    before, calls = saved(tmp_path / "run"), 0

    def fsync(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        full = csm("train", started, "--device", "cpu", "-q")
    assert full.code == 1 and "No space left" in error_line(full)
    assert not [name for name in names(tmp_path / "run") if name.endswith((".tmp", ".new", ".old"))]
    after = saved(tmp_path / "run")
    assert set(after) == set(before) and after["best/adapter_config.json"] == before["best/adapter_config.json"]
    assert_complete(tmp_path / "run")
    assert csm("train", started, "--device", "cpu", "-q").code == 0
    assert [row["step"] for row in history(tmp_path / "run") if row["split"] == "train"] == [*range(1, STEPS + 1)]


def test_file_size_limit_leaves_the_last_state(csm: Csm, started: Path, tmp_path: Path) -> None:
    folder, before = tmp_path / "run", saved(tmp_path / "run")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    try:
        full = csm("train", started, "--device", "cpu", "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert full.code == 1 and "File too large" in error_line(full)
    assert saved(folder) == before and not [name for name in names(folder) if name.endswith((".tmp", ".new"))]
    assert csm("train", started, "--device", "cpu", "-q").code == 0


def test_non_finite_loss_leaves_the_last_state(
    csm: Csm, started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, update = saved(tmp_path / "run"), Trainer.update

    def broken(self: Trainer, *arguments: Any) -> dict[str, float]:
        if self.step == 5:
            next(iter(self.parameters.values())).data.fill_(torch.nan)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", broken)
    result = csm("train", started, "--device", "cpu", "-q")
    assert result.code == 1
    assert "step 6: the loss is not finite at item-" in error_line(result)
    assert saved(tmp_path / "run") == before


@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_damaged_data_is_named(
    csm: Csm, configured: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    data = store(tmp_path / "data", tiny_checkpoint, *examples())
    shard, text = data / "00000.safetensors", data / "00000.jsonl"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing":
        shard.unlink()
    else:
        text.write_text(text.read_text().replace('"frames"', '"flames"'))
    result = csm("train", configured("run", data=str(data)), "--device", "cpu", "-q")
    assert result.code == 3
    assert "00000.safetensors: missing or damaged" in error_line(result) and "run csm data prepare again" in error_line(
        result
    )


@pytest.mark.parametrize("held_out", [False, True])
def test_codes_beyond_the_codebook_are_named(
    csm: Csm, configured: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path, held_out: bool
) -> None:
    codes = torch.ones(5, 8, dtype=torch.int64)
    codes[2, 3] = 30_000
    broken = Example("broken", (CodedTurn(0, "Hi.", codes),), held_out)
    data = store(tmp_path / "data", tiny_checkpoint, *examples(), broken)
    result = csm("train", configured("run", data=str(data)), "--device", "cpu", "-q")
    assert result.code == 3
    assert "broken: " in error_line(result) and "30000" in error_line(result)


def test_folder_in_use_by_another_run(csm: Csm, started: Path, tmp_path: Path) -> None:
    from csm_cli.storage.files import exclusive_lock

    with exclusive_lock(tmp_path / "run"):
        second = csm("train", started, "--device", "cpu", "-q")
    assert second.code == 2 and "in use by another run" in error_line(second)


def test_interrupted_folder_swap_is_recovered(csm: Csm, started: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", yaml.safe_load(started.read_text())["model"]
    old, new = ".best.0123456789abcdef.old", ".best.0123456789abcdef.new"
    (run / "best").rename(run / old)
    (run / new).mkdir()
    (run / ".0123456789abcdef.tmp").write_text("half")
    assert csm("train", started, "--device", "cpu", "-q").code == 0
    assert not {old, new, ".0123456789abcdef.tmp"} & names(run)
    assert open_checkpoint(model, adapter=str(run / "best"))


def test_state_loads_whatever_the_device_name(csm: Csm, started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes on CPUs, accelerate calls theirs cpu:0, which torch cannot read a file to."""
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("cpu", 0))
    assert csm("train", started, "--device", "cpu", "-q").code == 0


@contextmanager
def two_processes(config: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that train together, as a launcher starts them on two hosts; logs are beside `config`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    command = [sys.executable, "-m", "csm_cli", "train", str(config), "--device", "cpu"]
    processes = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = clean | {name: str(value) for name, value in names.items()} | {"OMP_NUM_THREADS": "1"}
        with log_of(config, rank).open("wb") as stderr:
            processes.append(subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def log_of(config: Path, rank: int) -> Path:
    return config.with_name(f"{config.stem}-{rank}.log")


def assert_lost_peer(log: Path, cause: str) -> None:
    lines = log.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(("csm: ", "Traceback"))]
    assert line == lines[-1] and re.match(rf"csm: after step \d+, another process of this run {cause}", line)
    assert line.endswith("run the same command again to resume from the last saved step")


@pytest.mark.slow
def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_resume(
    configured: Callable[..., Path], tmp_path: Path
) -> None:
    whole, config = (configured(name, steps=30, save_every=2, evaluate_every=10) for name in ("whole", "run"))
    with two_processes(whole) as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    with two_processes(config) as processes:
        wait_for_change(tmp_path / "run" / "state.pt", 0)
        processes[0].kill()  # the process that saves
        assert processes[1].wait(timeout=240) == 1
    assert_lost_peer(log_of(config, 1), "ended: killed, ")
    assert_complete(tmp_path / "run")
    with two_processes(config) as processes:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert "resuming after step" in log_of(config, 0).read_text()
    for name in ("best", "last"):
        one, two = (load_file(tmp_path / run / name / "adapter_model.safetensors") for run in ("whole", "run"))
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_where_one_of_two_processes_stops_answering_the_other_ends_in_time(
    configured: Callable[..., Path], tmp_path: Path
) -> None:
    config = configured("run", steps=10_000, save_every=2, evaluate_every=0, peer_timeout=8)
    with two_processes(config) as processes:
        wait_for_change(tmp_path / "run" / "state.pt", 0)
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(timeout=60) == 1
    assert_lost_peer(log_of(config, 0), "did not answer within peer_timeout")
