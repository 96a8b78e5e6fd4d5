"""What the README and the samples promise, run as written on the bundled voice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = re.findall(r"^(?:echo .*\| )?\.venv/bin/csm .*$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone after `make demo`: samples, out, and csm in .venv/bin."""
    folder = tmp_path_factory.mktemp("clone of csm")
    shutil.copytree(ROOT / "samples", folder / "samples")
    shutil.copytree(ROOT / "csm_cli" / "assets", folder / "csm_cli" / "assets")
    (folder / "out").mkdir()
    program = folder / ".venv" / "bin" / "csm"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m csm_cli "$@"\n')
    program.chmod(0o755)
    return folder


def run(command: str, desk: Path) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CSM_")}
    repeated = own | {"CSM_SEED": "1"}  # the same takes in every run
    return subprocess.run(command, shell=True, cwd=desk, env=repeated, capture_output=True, text=True)


def test_the_tour_is_there() -> None:
    assert len(TOUR) >= 9


@pytest.mark.parametrize("command", TOUR)
def test_the_tour_runs_as_written(command: str, desk: Path) -> None:
    done = run(command, desk)
    assert done.returncode == 0, done.stderr
    for file in re.findall(r"out/[\w/]+\.(?:wav|flac)", command):
        samples, rate = soundfile.read(desk / file)
        assert rate == 24000
        assert len(samples) > 0.4 * rate
        assert np.abs(samples).max() > 0.02


def test_the_readme_script_is_a_script(desk: Path) -> None:
    (script,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (desk / "samples" / "episode.yaml").write_text(script, encoding="utf-8")
    done = run(".venv/bin/csm check samples/episode.yaml", desk)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("sample", "turns"), [("dialogue.yaml", 8), ("dialogue.jsonl", 8), ("chat.json", 1), ("conversation.yaml", 1)]
)
def test_samples_are_spoken_to_their_own_end(sample: str, turns: int, desk: Path) -> None:
    """Two speakers, context, and every turn ended by the model itself."""
    done = run(f".venv/bin/csm converse samples/{sample} -o out/sample.wav --json", desk)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [turn["stop"] for turn in told["turns"]] == ["eos"] * turns
    if sample == "dialogue.yaml":
        assert told["duration_s"] >= 10
        assert {turn["speaker"] for turn in told["turns"]} == {"ana", "ben"}


def test_plain_text_with_a_tag_is_spoken(desk: Path) -> None:
    done = run(".venv/bin/csm say -f samples/plain.txt -o out/plain.wav --json --seed 1", desk)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["turns"][0]["text"] == "Hello from the bundled voice."


def test_a_batch_of_two_with_and_without_context_is_spoken(desk: Path) -> None:
    done = run('.venv/bin/csm batch samples/batch.jsonl -o "out/two/{id}.wav" --json --seed 1', desk)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {item["id"]: item["status"] for item in told} == {"alone": "ok", "answer": "ok"}
    assert all((desk / "out" / "two" / f"{name}.wav").exists() for name in ("alone", "answer"))
