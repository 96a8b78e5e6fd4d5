"""Teacher and judges in environments of their own, which are faked here: a Python that runs small worker scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from csm_cli.errors import CsmError
from csm_cli.recipe import judge, teacher
from csm_cli.recipe.judge import JudgedRecording, Judges, question_rise
from csm_cli.recipe.judge_worker import pitch_figures
from csm_cli.recipe.teacher import KokoroTeacher, TeacherRequest
from csm_cli.recipe.tool_environment import REQUIREMENTS, ToolEnvironment

TEACHER = """
import json, sys
request = json.load(sys.stdin)
import numpy
numpy.save(request["out"], numpy.arange(3 * 1200, dtype=numpy.float32))
for each in request["utterances"]:
    if each["text"] != "...":
        print(json.dumps({**each, "phonemes": "a", "durations": [0, 2, 0], "samples": 1200}))
"""
JUDGE = """
import json, sys
request = json.load(sys.stdin)
print("a library's banner")
found = [{"mos": 3.0 + i, "pitch_spread": None if i else 2.0, "pitch_rise": 2.0 * i, "similarity": {"x": 0.9, "y": i}}
         for i, _ in enumerate(request["recordings"])]
print(json.dumps({"wer": 0.5, "cer": 0.25, "transcript": request["recognizer"], "recordings": found}))
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder whose venv's Python is the one that runs the tests."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def worker(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(code)
    return path


def test_the_teacher_leaves_out_what_it_cannot_speak(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "_WORKER", worker(tools, "teacher_worker.py", TEACHER))
    requests = [TeacherRequest(text, "one", 1.1) for text in ("Ah.", "...", "Oh.")]
    first, second = KokoroTeacher(tools).speak(requests)
    assert (first.request, second.request) == (requests[0], requests[2])
    assert first.samples.tolist() == np.arange(1200).tolist() and second.samples[0] == 1200
    assert (second.phonemes, second.durations) == ("a", (0, 2, 0))


def test_the_judges_figures(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "_WORKER", worker(tools, "judge_worker.py", JUDGE))
    clips = [(tools / "0.wav", "A."), (tools / "1.wav", "B."), (tools / "2.wav", "C.")]
    found = Judges(tools).judge(clips, {"x": [], "y": []}, recognizer="tiny.en")
    assert (found.wer, found.transcript, found.mos, found.pitch_spread) == (0.5, "tiny.en", 4.0, 2.0)
    assert found.similarity(["x", "x", "y"]) == pytest.approx((0.9 + 0.9 + 2) / 3)
    assert found.voice_match(["x", "x", "y"]) == pytest.approx(2 / 3)


def test_a_question_counts_where_the_teachers_rises() -> None:
    rise, fall, quiet = (JudgedRecording(3.0, 2.0, figure, {}) for figure in (4.0, -2.0, None))
    assert question_rise([rise, fall, rise, quiet], [rise, rise, fall, quiet]) == (1, 2)


@pytest.mark.parametrize(("octaves", "rise"), [(0.0, 0.0), (0.5, 1.2), (-0.5, -1.2)])
def test_pitch_figures_of_a_glide(octaves: float, rise: float) -> None:
    time = np.arange(16_000) / 16_000  # a second, its pitch changing by `octaves`
    phase = 2 * np.pi * np.cumsum(150 * 2 ** (octaves * time)) / 16_000
    found = pitch_figures(sum(np.sin(k * phase) / k for k in range(1, 9)).astype(np.float32) * 0.2)
    assert found["pitch_rise"] == pytest.approx(rise, abs=0.6)
    assert found["pitch_spread"] == pytest.approx(12 * abs(octaves) / 12**0.5, abs=0.4)


def test_a_pitch_that_is_not_there() -> None:
    assert pitch_figures(np.zeros(8000, np.float32)) == {"pitch_spread": None, "pitch_rise": None}


def test_a_failing_worker_and_missing_tools_are_told(tools: Path) -> None:
    with pytest.raises(CsmError, match="exit code 3"):
        list(ToolEnvironment(tools).run_worker(worker(tools, "x_worker.py", "raise SystemExit(3)"), [], {}))
    with pytest.raises(CsmError, match=r"csm_cli\.recipe\.judge"):
        Judges(tools / "nowhere").judge([])


def test_a_vanished_package_is_told_in_one_line(tools: Path) -> None:
    pip = tools / "venv" / "bin" / "python"
    pip.write_text("#!/bin/sh\necho 'WARNING: slow' >&2\necho 'ERROR: No matching distribution found' >&2\nexit 1\n")
    with pytest.raises(CsmError, match=r"could not be installed \(ERROR: No matching distribution found\)"):
        ToolEnvironment(tools).install("vanished==1.0")


@pytest.mark.parametrize("name", ["teacher", "judge"])
def test_every_pinned_package_has_a_version_and_a_checksum(name: str) -> None:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert len(pinned) >= 6
    assert all("==" in line and len(line.split("--hash=sha256:")[1]) == 64 for line in pinned)
