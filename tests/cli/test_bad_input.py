"""Invalid inputs: exit code, one line on standard error, no traceback, no output."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from helpers.audio import write_tone
from helpers.run import Result

Csm = Callable[..., Result]


def assert_one_line(result: Result, code: int, message: str) -> None:
    """Checks exit code and message; a diagnostic is one line, with the count in a second."""
    lines = [line for line in result.err.splitlines() if not line.startswith(("loading ", "opening "))]
    assert result.code == code and not result.out, result
    assert len(lines) == (2 if lines[-1].startswith("1 error; ") else 1), lines
    assert message in lines[0] and "Traceback" not in result.err


def script(folder: Path, text: str) -> Path:
    path = folder / "script.yaml"
    path.write_text(text)
    return path


CASES = sorted(path for path in (Path(__file__).parents[1] / "cases").glob("*/*") if path.suffix != ".txt")


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_invalid_script_or_manifest_writes_nothing(
    csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(case, tmp_path)
    batch = case.parent.name == "manifests"
    output = "out/{id}.wav" if batch else "out/track.wav"
    result = csm("batch" if batch else "converse", case.name, "-o", output, "--model", tmp_path / "none", "-q")
    assert result.code == 3 and not result.out and "Traceback" not in result.err
    *diagnostics, last = result.err.splitlines()
    assert last.endswith("nothing was generated") and diagnostics
    locations = [re.match(rf"{re.escape(case.name)}(:\d+:\d+)? ", line) for line in diagnostics]
    assert any(locations) and [path.name for path in tmp_path.iterdir()] == [case.name]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "is a directory"),
        ("file.txt/a.wav", "is not a folder"),
        ("a.doc", ".doc"),
        ("a", "suffix"),
        ("/proc/none/a.wav", "/proc"),
        ("/dev/null", "/dev/null"),
    ],
)
def test_outputs(csm: Csm, tmp_path: Path, tiny_checkpoint: Path, output: str, message: str) -> None:
    (tmp_path / "file.txt").write_text("a file")
    result = csm("say", "Hi", "-q", "-o", tmp_path / output, "--model", tiny_checkpoint, "--max-duration", "0.1")
    assert_one_line(result, 2, message)


@pytest.mark.parametrize("command", ["say", "converse", "batch"])
def test_unwritable_outputs_are_rejected_before_the_model_is_looked_up(csm: Csm, tmp_path: Path, command: str) -> None:
    (tmp_path / "lines.jsonl").write_text(json.dumps({"id": "a", "speaker": 0, "text": "Hi"}))
    argument = "Hi" if command == "say" else tmp_path / "lines.jsonl"
    result = csm(command, argument, "-o", "/proc/{id}.wav", "--model", tmp_path / "none")
    assert_one_line(result, 2, "cannot be written to")
    assert "loading" not in result.err and "opening" not in result.err


def test_no_output(csm: Csm, played_audio: SimpleNamespace) -> None:
    played_audio.missing = True
    assert_one_line(csm("say", "Hi"), 2, "add -o out.wav")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turns: [{speaker: 0, text: Hi, txt: Ho}]", "txt"),
        ("titel: A\nturns: [{0: Hi}]", "titel"),
        ("title: A\ntitle: B\nturns: [{0: Hi}]", "duplicate field"),
        ("speakers: {ana: {id: 0}}\nturns: [{ben: Hi}]", '"ben" is not declared'),
        ("turns: [{0: ''}]", "expected text"),
        ("title: A", "turns"),
        ("turns: []", "no turns"),
        ("", "empty"),
        ("turns: [{speaker: 0, text: Hi, audio: none.wav}]", "no such file: none.wav"),
    ],
)
def test_scripts(csm: Csm, tmp_path: Path, text: str, message: str) -> None:
    assert_one_line(csm("converse", script(tmp_path, text), "-o", tmp_path / "a.wav"), 3, message)


@pytest.mark.parametrize("command", ["converse", "batch", "check"])
def test_a_missing_script(csm: Csm, tmp_path: Path, command: str) -> None:
    output = [] if command == "check" else ["-o", tmp_path / "{id}.wav"]
    assert_one_line(csm(command, tmp_path / "none.jsonl", *output), 3, "no such file")


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfeH\x00"])
def test_texts_not_in_utf8(csm: Csm, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert_one_line(csm("say", "-f", tmp_path / "a.txt", "-o", tmp_path / "a.wav"), 3, "UTF-8")


@pytest.mark.parametrize("name", ["none.txt", ".", "n" * 300])
def test_texts_that_cannot_be_read(csm: Csm, tmp_path: Path, name: str) -> None:
    assert_one_line(csm("say", "-f", tmp_path / name, "-o", tmp_path / "a.wav"), 3, str(tmp_path))


def test_a_tag_without_text(csm: Csm, tmp_path: Path) -> None:
    assert_one_line(csm("say", "[0] [1]Hi", "-o", tmp_path / "a.wav"), 3, "expected text")


def test_duplicate_ids(csm: Csm, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join([json.dumps({"id": "a", "speaker": 0, "text": "Hi"})] * 2))
    assert_one_line(csm("batch", path, "-o", tmp_path / "{id}.wav"), 3, '"a" is the id of line 1 too')


def zero_length(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), 24000)


def not_a_number(path: Path) -> None:
    soundfile.write(path, np.full(2400, np.nan, np.float32), 24000, subtype="FLOAT")


def ten_hours(path: Path) -> None:
    """A sparse file: 11 hours by its header, a few blocks on disk."""
    size = 11 * 3600 * 8000
    header = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8) + b"data" + struct.pack("<I", size)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def corrupt(path: Path) -> None:
    path.write_bytes(b"RIFF\x00\x00\x00\x00WAVEjunk")


def text(path: Path) -> None:
    path.write_text("not sound")


def cut_off(path: Path) -> None:
    write_tone(path, 2.0)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("make", [zero_length, not_a_number, ten_hours, corrupt, text, cut_off])
def test_audio(csm: Csm, tmp_path: Path, tiny_checkpoint: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "bad.wav")
    flags = ["--context", f"[1]{tmp_path / 'bad.wav'}=Hi", "--model", tiny_checkpoint, "-o", tmp_path / "a.wav"]
    assert_one_line(csm("say", "Hi", *flags), 3, "bad.wav")
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("context", "code", "message"),
    [("[1]none.wav=Hi", 3, "no such file"), ("tone.wav=Hi", 2, "--context"), ("[1]tone.wav", 2, "--context")],
)
def test_context_flags(csm: Csm, tmp_path: Path, context: str, code: int, message: str) -> None:
    assert_one_line(csm("say", "Hi", "--context", context, "-o", tmp_path / "a.wav"), code, message)


@pytest.mark.parametrize("voice", ["alice", "wordless.wav", "n" * 300])
def test_voices(csm: Csm, tmp_path: Path, voice: str) -> None:
    write_tone(tmp_path / "wordless.wav")
    assert_one_line(csm("say", "Hi", "-v", tmp_path / voice, "-o", tmp_path / "a.wav"), 4, voice)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--temperature", "warm"),
        ("--top-k", "-1"),
        ("--top-k", "1.5"),
        ("--depth-temperature", "-0.1"),
        ("--depth-top-k", "x"),
        ("--seed", "-1"),
        ("--seed", str(2**63)),
        ("--max-duration", "0"),
        ("--max-duration", "-2"),
        ("--max-duration", "long"),
        ("--max-duration", "3601"),
        ("--max-duration", "1e300"),
    ],
)
def test_impossible_values(csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str) -> None:
    assert_one_line(csm("say", "Hi", f"{flag}={value}", "-o", tmp_path / "a.wav"), 2, f"csm: {flag} takes ")
    variable = "CSM_" + flag[2:].replace("-", "_").upper()
    monkeypatch.setenv(variable, value)
    assert_one_line(csm("say", "Hi", "-o", tmp_path / "a.wav"), 2, f"csm: {variable} takes ")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--device", "gpu"], 2, "--device"),
        (["--device", "cuda:99"], 6, "csm doctor"),
        (["--dtype", "int8"], 2, "--dtype"),
        (["--model", "no/such/thing"], 4, "no/such/thing"),
        (["--revision", "main"], 2, "--revision"),
    ],
)
def test_models_and_devices(
    csm: Csm, tmp_path: Path, tiny_checkpoint: Path, flags: list[str], code: int, message: str
) -> None:
    result = csm("say", "Hi", "-o", tmp_path / "a.wav", "--model", tiny_checkpoint, *flags)
    assert_one_line(result, code, message)


@pytest.mark.parametrize("flag", ["--device", "--dtype", "--quantize"])
@pytest.mark.parametrize("command", [["say", "Hi", "-o"], ["converse", "a.yaml", "-n", "-o"], ["batch", "a.txt", "-o"]])
def test_unknown_names_are_rejected_before_anything_is_loaded(
    csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("Hello.\n")
    Path("a.yaml").write_text("turns: [{0: Hello}]\n")
    result = csm(*command, "a.wav", flag, "int4")
    assert result.code == 2 and flag[2:] in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("model.safetensors", None, "model.safetensors"),
        ("config.json", b"{}", "config.json"),
        ("config.json", b"[", "config.json"),
        ("config.json", b'{"model_type": "llama"}', "llama"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_broken_checkpoints(
    csm: Csm, tmp_path: Path, tiny_checkpoint: Path, file: str, data: bytes | None, message: str
) -> None:
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (broken / file).write_bytes((broken / file).read_bytes()[:5000] if data is None else data)
    assert_one_line(csm("say", "Hi", "-o", tmp_path / "a.wav", "--model", broken), 4, message)


def test_a_text_longer_than_the_context(csm: Csm, tmp_path: Path, tiny_checkpoint: Path) -> None:
    result = csm("say", "far " * 300, "--split", "off", "-o", tmp_path / "a.wav", "--model", tiny_checkpoint)
    assert_one_line(result, 3, "too long for the model's")
