"""csm converse: a script as one track."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from conftest import Result

Csm = Callable[..., Result]
SCRIPT = """
defaults: {gap: 0.5, max_duration: 0.4}
speakers:
  ana: {id: 0}
  "b[n]/é": {id: 1, gain: -6}
context:
  - {speaker: ana, audio: tone.wav, text: Hi there}
turns:
  - ana: Hello.
  - "b[n]/é": Really?
  - {speaker: ana, audio: tone.wav, text: Not once.}
  - {pause: 0.25}
"""


@pytest.fixture
def script(tmp_path: Path, tone: Path) -> Path:
    path = tmp_path / "dialogue.yaml"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_turns_gaps_recordings_and_tail_make_the_track(
    csm: Csm, tiny_checkpoint: Path, script: Path, tmp_path: Path
) -> None:
    result = csm("converse", script, "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", "--json")
    assert result.code == 0, result.err
    told = result.json
    assert [(turn["start_s"], turn["end_s"]) for turn in told["turns"]] == [(0.0, 0.4), (0.9, 1.3), (1.8, 2.3)]
    assert [turn["stop"] for turn in told["turns"]] == ["cap", "cap", "recorded"]
    assert told["turns"][2]["seed"] is None
    assert soundfile.info(tmp_path / "a.wav").duration == told["duration_s"] == 2.55


def test_each_turn_may_be_written_too(csm: Csm, tiny_checkpoint: Path, script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "turns"
    csm("converse", script, "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", "--turns-dir", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["001-ana.wav", "002-b_n__é.wav", "003-ana.wav"]
    assert [soundfile.info(path).duration for path in sorted(folder.iterdir())] == [0.4, 0.4, 0.5]


def test_a_dry_run_prints_the_plan_and_loads_nothing(csm: Csm, script: Path, tmp_path: Path) -> None:
    result = csm("converse", script, "-n", "--model", tmp_path / "none")
    assert result.code == 0 and not result.err
    context, first, second, third = result.out.splitlines()
    assert context.split() == ["context", "ana", "[0]", "Hi", "there", f"[{tmp_path / 'tone.wav'}]"]
    assert first.split() == ["1", "ana", "[0]", "Hello."] and "b[n]/é [1]  Really?" in second
    assert third.endswith("tone.wav]")


def test_the_plan_as_json(csm: Csm, script: Path) -> None:
    plan = csm("converse", script, "-n", "--json").json
    assert [turn["text"] for turn in plan["turns"]] == ["Hello.", "Really?", "Not once."]
    assert plan["turns"][1]["gain"] == -6 and plan["context"][0]["audio"].endswith("tone.wav")


def test_a_dry_run_checks_the_output_that_is_named(csm: Csm, script: Path, tmp_path: Path) -> None:
    assert csm("converse", script, "-n", "-o", tmp_path).code == 2


def test_nothing_is_written_where_a_turn_comes_out_empty(
    csm: Csm, mute_checkpoint: Path, script: Path, tmp_path: Path
) -> None:
    result = csm("converse", script, "--model", mute_checkpoint, "-o", tmp_path / "a.wav")
    assert result.code == 1 and 'turn 1 (ana: "Hello.") came out empty' in result.err
    assert not (tmp_path / "a.wav").exists()


def test_a_turns_file_may_not_be_the_track(csm: Csm, script: Path, tmp_path: Path) -> None:
    result = csm("converse", script, "-o", tmp_path / "001-ana.wav", "--turns-dir", tmp_path)
    assert result.code == 2 and "written twice" in result.err


def seeds(csm: Csm, checkpoint: Path, tmp_path: Path, *flags: str) -> list[int]:
    result = csm("converse", tmp_path / "s.yaml", "--model", checkpoint, "-o", tmp_path / "a.wav", "--json", *flags)
    return [turn["seed"] for turn in result.json["turns"]]


def test_turn_over_speaker_over_flag_over_script_over_environment(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "defaults: {{max_duration: 0.1{defaults}}}\nspeakers: {{a: {{id: 0{speaker}}}}}\n"
    script += "turns:\n  - {{speaker: a, text: Hi{turn}}}\n"
    monkeypatch.setenv("CSM_SEED", "1")
    layers = {"defaults": ", seed: 2", "speaker": ", seed: 4", "turn": ", seed: 5"}
    found = []
    for count, flags in ((0, []), (1, []), (1, ["--seed", "0"]), (2, ["--seed", "0"]), (3, ["--seed", "0"])):
        given = {name: text if at < count else "" for at, (name, text) in enumerate(layers.items())}
        (tmp_path / "s.yaml").write_text(script.format(**given))
        found += seeds(csm, tiny_checkpoint, tmp_path, *flags)
    assert found == [1, 2, 0, 4, 5]
