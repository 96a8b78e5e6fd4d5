"""The command line as a whole: help, what it imports, what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result, allow_sigint

from csm_cli import __version__
from csm_cli.cli import main
from csm_cli.cli import synthesis as speaking
from csm_cli.settings import SETTINGS

Csm = Callable[..., Result]
RUN = "import sys; from csm_cli.cli import main; sys.exit(main())"
LISTED = "import sys; from csm_cli.cli import main; main(); print(*sys.modules, file=sys.stderr)"


def process(*arguments: object, code: str = RUN, **options: object) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=allow_sigint,
        **options,
    )


def imported(*arguments: object) -> set[str]:
    """Top-level packages that a run of csm imports."""
    _, err = process(*arguments, code=LISTED).communicate()
    return {name.partition(".")[0] for name in err.splitlines()[-1].split()}


COMMANDS = ["", "say", "converse", "batch", "check", "doctor", "voices", "voices add", "voices rm", "models"]
COMMANDS += ["models pull", "config", "config show"]


@pytest.mark.parametrize("command", [each.split() for each in COMMANDS])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help(csm: Csm, command: list[str], flag: str) -> None:
    result = csm(*command, flag)
    assert result.code == 0 and "Usage: csm" in result.out and not result.err


def test_help_shows_brackets_as_they_are(csm: Csm) -> None:
    assert "[n]FILE=TEXT" in csm("say", "--help").out


@pytest.mark.parametrize("command", ["voices add", "data check", "data prepare"])
def test_help_of_other_commands_does_not_mention_speech(csm: Csm, command: str) -> None:
    text = " ".join(csm(*command.split(), "--help-all").out.split())
    assert "--json" in text and "spoken" not in text


def test_without_a_command_it_prints_its_help(csm: Csm) -> None:
    result = csm()
    assert result.code == 0 and "converse" in result.out


def test_bench_without_a_command_prints_its_help(csm: Csm) -> None:
    result = csm("bench")
    assert result.code == 2 and "Usage: csm bench" in result.out and not result.err


def test_version(csm: Csm) -> None:
    assert csm("--version").out == f"csm {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    assert not imported("--help") & {"torch", "transformers", "pydantic", "numpy", "soundfile", "librosa", "yaml"}


def test_check_imports_no_torch(tmp_path: Path) -> None:
    script = tmp_path / "a.yaml"
    script.write_text("turns: [{0: Hello}]\n")
    assert not imported("check", script) & {"torch", "transformers"}


def test_speaking_imports_no_transformers(tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    out = tmp_path / "a.wav"
    heard = f"[1]{tone}=Hi there"
    found = imported("say", "Hi", "-o", out, "--context", heard, "--model", tiny_checkpoint, "--max-duration", "0.1")
    assert out.exists() and "torch" in found and "transformers" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["say", "Hi", "--loud"], "--loud"),
        (["speak"], "speak"),
        (["converse"], "SCRIPT"),
        (["say", "Hi", "-s", "x"], "--speaker"),
        (["say", "Hi", "-s", "-1"], "--speaker"),
        (["batch", "a.jsonl", "-o", "{id}.wav", "--batch-size", "0"], "--batch-size"),
        (["say", "Hi", "there"], "there"),
        (["say", "Hi", "--tempature", "1"], "--temperature"),
        (["say", "Hi", "--temperature", "200"], "--temperature takes"),
        (["say", "Hi", "--device", "gpu"], "--device takes"),
        (["say", "Hi", "--quantize", "int4"], "--quantize takes"),
        (["converse", "a.yaml", "-o"], "`csm converse -h`"),
        (["voices", "add", "ana", "a.wav", "--start"], "`csm voices add -h`"),
        (["--loud"], "`csm -h`"),
    ],
)
def test_usage_errors_are_one_line(csm: Csm, arguments: list[str], message: str) -> None:
    result = csm(*arguments)
    assert result.code == 2 and not result.out
    assert len(result.err.splitlines()) == 1 and result.err.startswith("csm: ") and message in result.err


def test_flags_before_a_command_do_not_hide_it(csm: Csm) -> None:
    assert "`csm converse -h`" in csm("--debug", "converse", "a.yaml", "-o").err.splitlines()[-1]


def test_debug_shows_the_traceback(csm: Csm) -> None:
    assert "Traceback" not in csm("say", "Hi", "-o", "x.xyz").err
    assert "Traceback" in csm("say", "Hi", "-o", "x.xyz", "--debug").err
    assert "Traceback" in csm("--debug", "say", "Hi", "-o", "x.xyz").err


def test_debug_is_accepted_by_every_command(csm: Csm) -> None:
    assert csm("config", "path", "--debug").code == 0 and csm("voices", "--debug", "list").code == 0


def test_after_two_dashes_debug_is_text(csm: Csm) -> None:
    assert "Traceback" not in csm("say", "-o", "x.xyz", "--", "--debug").err


def options_in_help(csm: Csm, *command: str) -> set[str]:
    return set(re.findall(r"(?<=[\s,])--[a-z][a-z-]*", csm(*command).out))


@pytest.mark.parametrize("command", ["say", "converse", "batch"])
def test_the_short_help_shows_the_usual_options_and_the_long_one_all(csm: Csm, command: str) -> None:
    short, long = options_in_help(csm, command, "-h"), options_in_help(csm, command, "--help-all")
    assert {"--model", "--device", "--seed", "--temperature", "--output", "--json"} <= short < long
    assert len(short) <= 20 and {"--depth-top-k", "--dtype", "--retries", "--no-clobber"} <= long - short
    assert f"csm {command} --help-all" in csm(command, "-h").out


def test_help_shows_no_type_beside_a_switch(csm: Csm) -> None:
    assert "<bool>" not in csm("say", "--help-all").out and "<bool>" not in csm("-h").out


def test_every_setting_is_an_option_with_its_help(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = csm("say", "--help-all").out
    assert all(f"--{name.replace('_', '-')}" in shown and each.help in shown for name, each in SETTINGS.items())


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OutOfMemoryError("CUDA"), 6, "csm: out of memory;"),
        (MemoryError(), 6, "csm: out of memory;"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 6, "csm: out of memory;"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 6, "csm: out of memory;"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "csm: out of memory;"),
        (OSError(28, "No space left on device", "out.wav"), 1, "csm: out.wav: No space left on device;"),
        (ZeroDivisionError("by [bold]nothing"), 1, "csm: unexpected ZeroDivisionError: by [bold]nothing;"),
        (KeyboardInterrupt(), 130, "csm: interrupted"),
    ],
)
def test_any_failure_is_one_line(
    csm: Csm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int, message: str
) -> None:
    def fail(output_options: object) -> None:
        raise error

    monkeypatch.setattr(speaking, "configure_logging", fail)
    result = csm("say", "Hi", "-o", tmp_path / "a.wav")
    assert result.code == code and result.err.startswith(message) and len(result.err.splitlines()) == 1


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", RUN, "config", "show"], stdout=writer, stderr=subprocess.PIPE, env=environment, text=True
    )
    os.close(writer)
    assert done.returncode == 1 and not done.stderr


@pytest.mark.parametrize("flag", ["--json", "-q"])
def test_a_batch_stops_with_a_reason_when_its_reader_closes_the_pipe(
    tiny_checkpoint: Path, tmp_path: Path, flag: str
) -> None:
    lines = [{"id": f"{n}", "speaker": 0, "text": "Hi.", "max_duration": 0.1 if n == 0 else 3} for n in range(20)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))
    target = tmp_path / "out" / "{id}.wav"
    flags = ("--model", tiny_checkpoint, "--batch-size", 1, flag)
    with process("batch", tmp_path / "many.jsonl", "-o", target, *flags) as run:
        assert run.stdout and run.stderr and run.stdout.readline()
        run.stdout.close()
        errors = [line for line in run.stderr.read().splitlines() if "maximum duration" not in line]
    assert run.returncode == 1 and any("standard output was closed" in line for line in errors)
    assert flag != "-q" or len(errors) == 1
    assert 0 < len(list((tmp_path / "out").glob("*.wav"))) < 20


def test_json_is_utf8_whatever_a_file_is_called() -> None:
    out, _ = process("check", "--json", "caf\udce9 é.yaml").communicate()
    assert "é" in out and json.loads(out)["files"][0]["file"] == "caf\udce9 é.yaml"


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "out", "err"),
    [
        ("<&-", "say -o a.wav", 2, "", "csm: no text to say"),
        (">&-", "say Hi -o -", 2, "", "csm: -o - writes audio, and standard output is closed"),
        (">&-", "check a.yaml", 0, "", "a.yaml: "),
        ("2>&-", "check a.yaml", 0, "", ""),
        ("2>&-", "check none.yaml", 3, "", ""),
        ("<&- >&- 2>&-", "check --json a.yaml", 0, "", ""),
    ],
)
def test_a_closed_stream_is_the_null_device(
    tmp_path: Path, closed: str, arguments: str, code: int, out: str, err: str
) -> None:
    (tmp_path / "a.yaml").write_text("turns: [{0: Hello}]\n")
    shell = ["sh", "-c", f'exec "$0" -c "$1" {arguments} {closed}', sys.executable, RUN]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr.startswith(err) and (err or not done.stderr) and "Traceback" not in done.stderr


def test_an_interrupt_leaves_finished_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = [{"id": "short", "speaker": 0, "text": "Hi.", "max_duration": 0.1}]
    lines += [{"id": f"long{n}", "speaker": 0, "text": "Hi.", "max_duration": 30} for n in range(20)]
    manifest = tmp_path / "many.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    run = process(
        "batch", manifest, "-o", tmp_path / "{id}.wav", "--model", tiny_checkpoint, "--batch-size", 2, "--json"
    )
    assert run.stdout and json.loads(run.stdout.readline())["id"] == "short"
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err.splitlines()[-1] == "csm: interrupted" and "Traceback" not in err
    assert "1 written" in err and "20 left" in err and (tmp_path / "short.wav").exists()
    assert not list(tmp_path.glob(".*"))


def cpu_seconds(code: str, *arguments: str) -> float:
    """Processor time of a child, best of three."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process(*arguments, code=code).communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_is_fast() -> None:
    """Under half a second of processor time or, on a busy machine, 4 times that of some standard modules."""
    standard = "import asyncio, dataclasses, email.message, http.client, inspect, json, typing, unittest"
    seconds = cpu_seconds(RUN, "--help")
    assert seconds < 0.5 or seconds < 4 * cpu_seconds(standard)


def test_main_reads_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["csm", "--version"])
    assert main() == 0 and capsys.readouterr().out.startswith("csm ")
