"""Settings of csm train: strict, every diagnostic at once with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from csm_cli.errors import SettingsInvalid
from csm_cli.script import diagnostic_lines
from csm_cli.train.settings import read_train_settings

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_can_be_read(path: Path) -> None:
    settings = read_train_settings(path)
    assert settings.steps and settings.data and settings.output


def diagnostics(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        read_train_settings(path)
    assert caught.value.code == 3
    return [line.removeprefix(str(path)) for line in diagnostic_lines(caught.value)]


def test_complaints_come_together_with_their_places(tmp_path: Path) -> None:
    found = diagnostics(
        tmp_path,
        "data: x\noutput: y\nstepss: 10\nlearning_rate: fast\nlora: {rankk: 3, alpha: -1}\ntensorboard: maybe\n",
    )
    expected = (
        (":3:1 ", 'unknown field; did you mean "steps"?'),
        (":4:16 ", "expected a number > 0"),
        (":5:8 ", 'lora.rankk            unknown field; did you mean "rank"?'),
        (":5:25 ", "lora.alpha            expected a number > 0, got -1"),
        (":6:14 ", "expected true or false"),
    )
    for line, (place, words) in zip(found, expected, strict=False):
        assert line.startswith(place) and words in line
    assert found[-1] == "5 errors; nothing was trained"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty; expected settings (name: value)"),
        ("- a\n", "expected settings"),
        ("data: x\noutput: y\n", "missing"),
        ("data: x\noutput: y\nsteps: 5\nlora: {}\nscratch: {}\n", "keep lora or scratch"),
        ("data: x\noutput: y\nsteps: 5\noptimizer: sgd\n", "adamw or adamw8bit"),
        ("data: x\noutput: y\nsteps: 0\n", "whole number >= 1"),
    ],
)
def test_what_makes_no_settings_is_told(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(diagnostics(tmp_path, text))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        read_train_settings(tmp_path / "no.yaml")
    assert "no such file" in "\n".join(diagnostic_lines(caught.value))
