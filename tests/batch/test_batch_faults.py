"""A batch that is killed, out of disk, interrupted or run twice at once: nothing is lost, doubled or half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.audio import write_tone
from helpers.run import Result, allow_sigint

Csm = Callable[..., Result]
RUN = "-c", "import sys; from csm_cli.cli import main; sys.exit(main())"
COUNT = 60  # items
# Imports once, and then runs each line of arguments in a child, which can be killed.
FORK_SERVER = """
import json, os, sys
import csm_cli.generation.synthesizer
from csm_cli.cli import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.exit(main(json.loads(line)))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


def manifest(folder: Path, size: int) -> Path:
    path = folder / "lines.jsonl"
    lines = [{"id": f"n{n}", "speaker": n % 3, "text": f"Hello, number {n}.", "max_duration": 0.4} for n in range(size)]
    path.write_text("\n".join(json.dumps(line | {"temperature": 1.0}) for line in lines))
    return path


def batch(checkpoint: Path, path: Path, folder: Path) -> list[str]:
    """One item at a time: then it sounds the same to the bit whatever was done before it."""
    return [*map(str, ("batch", path, "-o", folder / "{id}.wav", "--model", checkpoint, "--batch-size", 1))]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run of its own, dead in any case afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    run = subprocess.Popen([sys.executable, *arguments], **pipes, text=True, env=environment, preexec_fn=allow_sigint)
    with run:
        try:
            yield run
        finally:
            run.kill()


def wait_for_items(run: subprocess.Popen[str], items: int = 1) -> None:
    """Waits until so many items are done."""
    for _ in range(items):
        assert run.stdout and run.stdout.readline(), run.communicate()[1]


def recorded(folder: Path) -> list[str]:
    """Ids on the whole lines of the ledger."""
    text = (folder / "results.jsonl").read_text()
    return [json.loads(line)["id"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_in_the_middle(fork_server: subprocess.Popen[str], arguments: list[str], chance: random.Random) -> None:
    """Runs `csm` with these arguments until a few items, and a moment more, are done."""
    assert fork_server.stdin and fork_server.stdout
    print(json.dumps(arguments), file=fork_server.stdin, flush=True)
    lines = (line.strip() for line in fork_server.stdout)
    numbers = (int(line) for line in lines if line.isdigit())  # the child's; paths may come before it
    child = next(numbers)
    for _ in range(chance.randrange(1, 7)):
        next(lines)
    time.sleep(chance.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    assert "over" in lines


@pytest.mark.slow
def test_a_run_killed_repeatedly_ends_with_the_same_files(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, folder = manifest(tmp_path, COUNT), tmp_path / "killed"
    arguments = batch(tiny_checkpoint, path, folder)
    chance = random.Random(0)
    with running(["-c", FORK_SERVER]) as fork_server:
        for _ in range(10):
            kill_in_the_middle(fork_server, arguments, chance)
            assert all((folder / f"{name}.wav").exists() for name in recorded(folder))
    before = set(recorded(folder))
    assert 0 < len(before) < COUNT
    last = csm(*arguments)
    assert last.code == 0 and len(last.out.splitlines()) == COUNT - len(before)
    assert Counter(recorded(folder)) == Counter(f"n{n}" for n in range(COUNT)), "none twice after it was recorded"
    csm(*batch(tiny_checkpoint, path, tmp_path / "once"))
    files = {file.name: file.read_bytes() for file in (tmp_path / "once").glob("*.wav")}
    assert {file.name: file.read_bytes() for file in folder.glob("*.wav")} == files
    assert len(files) == COUNT


@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_a_full_disk_ends_the_run_and_the_next_resumes(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The disk turns out to be full at one of the calls that reach it, for a sound or for its line."""
    calls = count(1)

    def fsync(_: int) -> None:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, folder = manifest(tmp_path, 4), tmp_path / "out"
    arguments = batch(tiny_checkpoint, path, folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        full = csm(*arguments)
    assert full.code == 1 and "No space left" in full.err.splitlines()[-1] and "Traceback" not in full.err
    assert not list(folder.glob(".*.tmp"))
    assert csm(*arguments).code == 0
    assert set(recorded(folder)) == {f"n{n}" for n in range(4)}
    assert all(soundfile.info(folder / f"n{n}.wav").frames == 5 * 1920 for n in range(4))


@pytest.mark.parametrize(("limit", "seconds"), [(1000, 0.4), (5000, 0.08)])
def test_a_file_size_limit_ends_the_run_and_the_next_resumes(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, limit: int, seconds: float
) -> None:
    """The system stops a sound, or in the second case a line of the ledger, in the middle."""
    path, folder = manifest(tmp_path, 12), tmp_path / "out"
    path.write_text(path.read_text().replace('"max_duration": 0.4', f'"max_duration": {seconds}'))
    arguments = batch(tiny_checkpoint, path, folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        stopped = csm(*arguments, "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stopped.code == 1 and "File too large" in stopped.err.splitlines()[-1]
    assert not list(folder.glob(".*.tmp"))
    before_that = set(recorded(folder))
    again = csm(*arguments)
    assert again.code == 0 and f"{12 - len(before_that)} written" in again.err
    assert Counter(recorded(folder)) == Counter(f"n{n}" for n in range(12))
    assert all(soundfile.info(folder / f"n{n}.wav").frames == round(seconds / 0.08) * 1920 for n in range(12))


def test_a_clock_that_runs_backwards_changes_nothing(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest(tmp_path, 3)
    monkeypatch.setattr(time, "time", map(float, count(2_000_000_000, -3600)).__next__)
    for name in ("first", "second"):
        assert csm(*batch(tiny_checkpoint, path, tmp_path / name)).code == 0
    os.utime(path, (0, 0))
    os.utime(tmp_path / "first" / "results.jsonl", (0, 0))
    assert "3 reused" in csm(*batch(tiny_checkpoint, path, tmp_path / "first")).err
    files = [(tmp_path / name / "n1.wav").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]


def test_an_empty_item_fails_alone(csm: Csm, silent_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    lines = [
        {"id": "mute", "speaker": 0, "text": "Hello."},
        {"id": "recorded", "turns": [{"speaker": 0, "text": "Hello.", "audio": tone.name}]},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    result = csm(*batch(silent_checkpoint, path, tmp_path / "out"), "--batch-size", 2)
    assert result.code == 5 and result.out == f"{tmp_path / 'out' / 'recorded.wav'}\n"
    (failure,) = [line for line in result.err.splitlines() if line.startswith("csm: mute: turn 1")]
    assert failure.count("came out empty") == 1, "greedy, every other take would be the same"
    assert [path.name for path in (tmp_path / "out").glob("*.wav")] == ["recorded.wav"]


def test_an_item_with_unreadable_context_fails_until_repaired(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, np.full(2400, np.nan, np.float32), 24000, subtype="FLOAT")
    lines = [{"id": f"n{n}", "speaker": 0, "text": "Hi.", "max_duration": 0.2} for n in range(3)]
    lines[1] |= {"context": [{"speaker": 1, "audio": voice.name, "text": "Ho."}]}
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    arguments = batch(tiny_checkpoint, path, tmp_path)
    broken = csm(*arguments)
    assert broken.code == 5 and "csm: n1: " in broken.err and len(broken.out.splitlines()) == 2
    write_tone(voice)
    assert csm(*arguments).out == f"{tmp_path / 'n1.wav'}\n"


def test_a_second_run_on_a_folder_is_refused(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, folder = manifest(tmp_path, COUNT), tmp_path / "out"
    with running([*RUN, *batch(tiny_checkpoint, path, folder)]) as first:
        wait_for_items(first)
        first.send_signal(signal.SIGSTOP)
        second = csm(*batch(tiny_checkpoint, path, folder), "-q")
        assert second.code == 2 and "in use by another run" in second.err and len(second.err.splitlines()) == 1
    assert csm(*batch(tiny_checkpoint, path, folder)).code == 0


def test_an_interrupted_run_exits_with_130_and_resumes(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, folder = manifest(tmp_path, COUNT), tmp_path / "out"
    with running([*RUN, *batch(tiny_checkpoint, path, folder)]) as run:
        wait_for_items(run)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err
    done = set(recorded(folder))
    again = csm(*batch(tiny_checkpoint, path, folder))
    assert again.code == 0 and f"{len(done)} reused" in again.err
    assert Counter(recorded(folder)) == Counter(f"n{n}" for n in range(COUNT))


def test_an_item_that_never_stops_fails_alone(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, 3)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({"id": "n1", "speaker": 0, "text": "Hi.", "temperature": 1.0})
    path.write_text("\n".join(lines))
    result = csm(*batch(tiny_checkpoint, path, tmp_path / "out"), "--batch-size", 3)
    assert result.code == 5 and len(result.out.splitlines()) == 2
    (failure,) = [line for line in result.err.splitlines() if line.startswith("csm: n1: ")]
    assert failure.count("had not ended after") == 3
