"""csm data: output, files and exit codes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.run import Result

from csm_cli.data.store import open_store

Csm = Callable[..., Result]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """An audiofolder of three clips by two speakers, one more that is silent, a broken row and a missing file."""
    folder = tmp_path / "my set"
    folder.mkdir()
    rows = []
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 0.1 if number < 3 else 0, 8000)
        soundfile.write(folder / f"{number}.wav", noise, 16000)
        rows.append(json.dumps({"file_name": f"{number}.wav", "text": "[b]Words[/b].", "speaker": "ab"[number % 2]}))
    rows += ["{broken", json.dumps({"file_name": "none.wav", "text": "Gone."})]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_check_reports_usable_and_dropped_clips(csm: Csm, dataset: Path) -> None:
    result = csm("data", "check", dataset)
    assert (result.code, result.out) == (0, "")
    place = dataset / "metadata.jsonl"
    for line, reason in ((4, "silence"), (5, "invalid row"), (6, "unreadable")):
        assert f"csm: {place}:{line}: {reason}" in result.err and f"dropped: {reason}" in result.err
    assert str(dataset / "none.wav") in result.err


def test_check_as_json(csm: Csm, dataset: Path) -> None:
    result = csm("data", "check", dataset, "--json").json
    assert result["usable"]["clips"] == 3 and result["speakers"] == {"0": 2, "1": 1}
    assert result["speaker_names"] == {"a": 0, "b": 1}
    assert [clip["reason"] for clip in result["dropped_clips"]] == ["silence", "invalid row", "unreadable"]


def test_check_loads_no_model(dataset: Path) -> None:
    code = (
        f"from csm_cli.cli import main; assert main(['data', 'check', {str(dataset)!r}]) == 0; import sys;"
        "print([name for name in ('torch', 'transformers', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_plots_durations(csm: Csm, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = csm("data", "check", dataset, "--plot", tmp_path / "out" / "lengths.png", "-q")
    assert (result.code, result.out, result.err) == (0, f"{tmp_path}/out/lengths.png\n", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = csm("data", "check", dataset, "--plot", tmp_path / "lengths.png")
    assert result.code == 2 and "csm-cli[train]" in result.err


def test_prepare_makes_a_store_and_its_report(csm: Csm, dataset: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made here" / "store"
    result = csm("data", "prepare", dataset, "-o", folder, "--model", tiny_checkpoint, "--held-out", "0")
    assert (result.code, result.out) == (0, f"{folder}\n"), result.err
    assert [example.turns[0].text for example in open_store(folder)] == ["[b]Words[/b]."] * 3
    assert json.loads((folder / "report.json").read_text())["usable"]["clips"] == 3
    assert len((folder / "dropped.jsonl").read_text().splitlines()) == 3 and (folder / "durations.png").exists()
    again = csm("data", "prepare", dataset, "-o", folder, "--model", tiny_checkpoint, "--held-out", "0", "--json")
    assert again.json["examples"] == 3 and again.json["held_out"] == 0 and again.json["hours_per_hour"] == 0


def test_few_dropped_clips_are_listed_unless_all(csm: Csm, dataset: Path) -> None:
    (dataset / "metadata.jsonl").open("a").write("\n{" * 9)
    assert csm("data", "check", dataset).err.count("invalid row: is not") == 5
    assert csm("data", "check", dataset, "--all").err.count("invalid row: is not") == 10


def test_limits(csm: Csm, dataset: Path) -> None:
    result = csm("data", "check", dataset, "--max-duration", "0.4", "--json")
    assert result.code == 3 and result.json["dropped"]["too long"]["clips"] == 4
    assert "no trainable clips" in result.err


def test_nothing_to_prepare(csm: Csm, dataset: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--model", tiny_checkpoint, "--min-rate", "48000", "-q")
    result = csm("data", "prepare", dataset, "-o", tmp_path / "store", *arguments)
    assert (result.code, result.out) == (3, "") and "no trainable clips" in result.err


def test_context_alone_is_not_trainable(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = ROOT / "samples" / "dialogue.yaml"
    checked = csm("data", "check", script)
    prepared = csm("data", "prepare", script, "-o", tmp_path / "store", "--model", tiny_checkpoint)
    for result in (checked, prepared):
        assert (result.code, result.out) == (3, "")
        assert result.err.count("no trainable clips") == 1 and "context only" in result.err
        assert "to resume" not in result.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none"], 3, "none: cannot be read (No such file or directory)"),
        (["."], 3, ".: holds no dataset"),
        (["x.yaml", "--format", "parquet"], 2, "--format takes auto, conversation"),
        (["x.yaml", "--min-duration", "5", "--max-duration", "2"], 2, "--min-duration 5 is not below --max-duration 2"),
        ([], 2, "missing argument"),
    ],
)
def test_bad_input(
    csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = csm("data", "check", *arguments)
    assert (result.code, result.out) == (code, "") and message in result.err


def test_output_that_cannot_be_written(csm: Csm, dataset: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = csm("data", "prepare", dataset, "-o", tmp_path / "file", "--model", tiny_checkpoint, "-q")
    assert result.code == 2 and "cannot be written" in result.err
    assert csm("data", "prepare", dataset, "-o", tmp_path / "store", "--model", tmp_path / "none").code == 4


def test_samples(csm: Csm, tmp_path: Path) -> None:
    result = csm("data", "check", ROOT / "samples" / "ljspeech", ROOT / "samples" / "dialogue.yaml", "--json")
    assert result.code == 0 and result.json["usable"]["clips"] == 5  # three, and the two of the dialogue's context
    assert result.json["dropped"] == {"no audio": {"clips": 8, "hours": 0.0}}
