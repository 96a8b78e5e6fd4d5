"""Commands with a fault at their n-th file operation: a kill, an interrupt, a full disk or a second process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

Fault = Literal["none", "kill", "interrupt", "full", "twin"]
FAULTS: tuple[Fault, ...] = ("kill", "interrupt", "full", "twin")
# Imports once; each line is a run in a forked child, with a fault at its n-th file operation below a folder: for "twin"
# the child waits there while another one runs the same command to its end. Prints the child's wait status, how many
# operations it made (-1 where it was killed), and the other one's wait status (0 where there was none).
_FORK_SERVER = """
import errno, json, os, signal, sys
import accelerate, peft
import csm_cli.checkpoint.export, csm_cli.data.prepare, csm_cli.generation.synthesizer, csm_cli.report.page
import csm_cli.train.run, csm_cli.voices.clip
from csm_cli.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}

def watch(folder, fault, number, counted, pipes):
    def hook(event, details):
        if event == "open":
            if not isinstance(details[0], (str, bytes)) or not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in CHANGES:
            return
        if not os.path.abspath(os.fsdecode(details[0])).startswith(folder):
            return
        counted[0] += 1
        if counted[0] != number:
            return
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "interrupt":
            raise KeyboardInterrupt
        if fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(details[0]))
        if fault == "twin":
            os.write(pipes[1], b"twin")
            os.read(pipes[2], 1)
    return hook

def run(arguments, log, hook=None):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if hook:
        sys.addaudithook(hook)
    code = 99
    try:
        code = main(arguments)
    finally:
        sys.stdout.flush()
        return code

print("ready", flush=True)
for line in sys.stdin:
    arguments, folder, fault, number, log = json.loads(line)
    pipes = [*os.pipe(), *os.pipe()]
    child = os.fork()
    if not child:
        counted = [0]
        code = run(arguments, log, watch(folder, fault, number, counted, pipes))
        os.write(pipes[1], str(counted[0]).encode())
        os._exit(code)
    os.close(pipes[1])
    twin_status, made = 0, os.read(pipes[0], 20)
    if made == b"twin":
        twin = os.fork()
        if not twin:
            os._exit(run(arguments, log + ".twin"))
        twin_status = os.waitpid(twin, 0)[1]
        os.write(pipes[3], b"!")
        made = os.read(pipes[0], 20)
    status = os.waitpid(child, 0)[1]
    print(status, made.decode() or -1, twin_status, flush=True)
    for pipe in (pipes[0], pipes[2], pipes[3]):
        os.close(pipe)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended. code: its exit code, None where it was killed; operations: file operations that it made; twin:
    the exit code of the second process."""

    code: int | None
    operations: int
    output: str
    twin: int = 0


@dataclass(frozen=True)
class Command:
    """A command that writes below `folder`. units: files or folders that each change as a whole; foreign: files of the
    user's that never change."""

    arguments: Sequence[object]
    folder: Path
    units: Sequence[Path]
    foreign: Sequence[Path]


@contextmanager
def fault_runner(home: Path) -> Iterator[Callable[[Command, Fault, int], Ended]]:
    """Runs commands with a fault at the n-th operation."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    environment |= {"CSM_HOME": str(home), "PYTHONWARNINGS": "ignore"}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", _FORK_SERVER], **pipes, text=True, env=environment) as server:
        assert server.stdin and server.stdout and server.stdout.readline() == "ready\n"

        def run(command: Command, fault: Fault = "none", number: int = 0) -> Ended:
            log = command.folder.parent / "log.txt"
            arguments = [str(argument) for argument in command.arguments]
            print(json.dumps([arguments, str(command.folder), fault, number, str(log)]), file=server.stdin, flush=True)
            assert server.stdout
            status, operations, twin = map(int, server.stdout.readline().split())
            code = os.waitstatus_to_exitcode(status)
            output = log.read_text(errors="replace")
            return Ended(code if code >= 0 else None, operations, output, os.waitstatus_to_exitcode(twin))

        try:
            yield run
        finally:
            server.kill()


def content(path: Path) -> str:
    """A digest of a file or of all files of a folder, empty where there is none; locks and markers do not count."""
    if path.is_file():
        return sha256(path.read_bytes()).hexdigest()
    files = [each for each in sorted(path.rglob("*")) if each.is_file() and each.suffix != ".lock"]
    return sha256(b"".join(each.name.encode() + each.read_bytes() for each in files)).hexdigest() if files else ""


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return [path.name for path in folder.rglob(".*") if path.suffix in (".tmp", ".new", ".old", ".gone")]


def check_faults(
    run: Callable[[Command, Fault, int], Ended], command: Command, faults: Sequence[Fault], sample: int | None = None
) -> int:
    """Runs `command` with each fault at each file operation, or at `sample` of them; returns how many were tried.

    Asserts that every unit is as before or as after a run without a fault, that foreign files are unchanged, and that
    the same command without a fault then ends as if nothing had happened, with nothing left behind. Of two processes
    one at least does its work, and the other too or it is refused.
    """
    backup = command.folder.with_name("backup")
    shutil.rmtree(backup, ignore_errors=True)
    shutil.copytree(command.folder, backup, symlinks=True)

    def restore() -> None:
        shutil.rmtree(command.folder)
        shutil.copytree(backup, command.folder, symlinks=True)

    before = [content(path) for path in (*command.units, *command.foreign)]
    whole = run(command, "none", 0)
    assert whole.code == 0, whole.output
    after = [content(path) for path in (*command.units, *command.foreign)]
    assert after[len(command.units) :] == before[len(command.units) :], "a foreign file changed"
    numbers = list(range(1, whole.operations + 1))
    if sample:
        numbers = sorted({numbers[round(index * (len(numbers) - 1) / (sample - 1))] for index in range(sample)})
    for fault in faults:
        for number in numbers:
            restore()
            where = f"{command.arguments[0]}: {fault} at operation {number} of {whole.operations}"
            ended = run(command, fault, number)
            found = [content(path) for path in (*command.units, *command.foreign)]
            for path, now, old, new in zip((*command.units, *command.foreign), found, before, after, strict=True):
                assert now in (old, new), f"{where}: {path} is neither as before nor as after; {ended.output}"
            if fault == "twin":
                codes = sorted((ended.code, ended.twin), key=str)
                accepted = ([0, 0], [0, 2], [0, 4]) if command.arguments[1:2] == ["rm"] else ([0, 0], [0, 2])
                assert codes in accepted, f"{where}: exit codes {codes}; {ended.output}"
            again = run(command, "none", 0)
            is_done = found == after  # so that a removal finds nothing to remove
            assert again.code == 0 or is_done, f"{where}: {again.output}"
            assert [content(path) for path in (*command.units, *command.foreign)] == after, where
            assert not leftovers(command.folder), where
    shutil.rmtree(backup)
    return len(numbers) * len(faults)
