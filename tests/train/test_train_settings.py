"""Settings of csm train: strict, all diagnostics at once with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from csm_cli.errors import SettingsInvalid
from csm_cli.script import diagnostic_lines
from csm_cli.train.settings import read_train_settings

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_example_configs_are_valid(path: Path) -> None:
    settings = read_train_settings(path)
    assert settings.steps and settings.data and settings.output


def diagnostics(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid) as caught:
        read_train_settings(path)
    assert caught.value.code == 3
    return [line.removeprefix(str(path)) for line in diagnostic_lines(caught.value)]


def test_all_diagnostics_with_their_places(tmp_path: Path) -> None:
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
        ("data: x\noutput: y\nsteps: 5\nlora: {}\nfrom_scratch: {}\n", "keep lora or from_scratch"),
        ("data: x\noutput: y\nsteps: 5\noptimizer: sgd\n", "adamw or adamw8bit"),
        ("data: x\noutput: y\nsteps: 0\n", "whole number >= 1"),
    ],
)
def test_invalid_settings(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(diagnostics(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        read_train_settings(tmp_path / "no.yaml")
    assert "no such file" in "\n".join(diagnostic_lines(caught.value))


def test_former_names_are_reported_with_the_new_ones(tmp_path: Path) -> None:
    found = diagnostics(tmp_path, "data: x\noutput: y\nsteps: 5\naverage: 0.9\nlora: {targets: [q_proj]}\n")
    assert found[0].startswith(":4:1 ") and 'did you mean "ema_decay"?' in found[0]
    assert found[1].startswith(":5:8 ") and 'did you mean "target_modules"?' in found[1]
    assert found[-1].startswith("2 errors")
