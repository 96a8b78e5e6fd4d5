"""Output is UTF-8 whatever the code page, and text of users never controls a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

CSM = [sys.executable, "-m", "csm_cli"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_a_pipe_gets_utf8_whatever_the_code_page(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("ANA: Привет, мир.\nBEN: 你好 — é.\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run([*CSM, "script", "convert", "in.txt"], cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0
    (tmp_path / "out.yaml").write_bytes(result.stdout)
    checked = subprocess.run([*CSM, "check", "out.yaml", "--json"], cwd=tmp_path, env=environment, capture_output=True)
    assert json.loads(checked.stdout.decode("utf-8"))["ok"] and "你好" in result.stdout.decode("utf-8")


def terminal_output(command: list[str], folder: Path) -> bytes:
    """What a program writes to a terminal, on standard output and error."""
    parent, child = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, stdin=child, stdout=child, stderr=child)
    os.close(child)
    output = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        output += data
        if not data:
            break
    process.wait()
    os.close(parent)
    return output


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a\x1b[2J.yaml", "turns:\n- ana: Hi.\n"),
        ("b.yaml", 'turns:\n- "a\\e[31m": Hi.\n'),
        ("c.jsonl", '{"text": "Hi.", "x\\u009b31m": 1}\n'),
        ("d.csv", "text,\x1b]0;title\x07\nHi.,x\n"),
        ("e\u202etxt.yaml", "turns: 1\n"),
    ],
)
def test_control_sequences_do_not_reach_a_terminal(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    for flags in ([], ["--json"]):
        shown = terminal_output([*CSM, "check", name, *flags], tmp_path).decode("utf-8")
        assert not set(shown) & set("\x1b\x9b\x07\u202e"), repr(shown)
