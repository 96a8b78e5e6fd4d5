"""csm converse: a script as one track."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result
from numpy.typing import NDArray

from csm_cli.generation.take import Take, TakeBuilder
from csm_cli.generation.turn_cache import TurnCache, lock_track

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
  - {speaker: ana, audio: tone.wav, text: Not once., id: last-one}
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
    metadata = result.json
    assert [(turn["start_s"], turn["end_s"]) for turn in metadata["turns"]] == [(0.0, 0.4), (0.9, 1.3), (1.8, 2.3)]
    assert [turn["stop"] for turn in metadata["turns"]] == ["cap", "cap", "recorded"]
    assert metadata["turns"][2]["seed"] is None
    assert soundfile.info(tmp_path / "a.wav").duration == metadata["duration_s"] == 2.55


def test_each_turn_may_be_written_too(csm: Csm, tiny_checkpoint: Path, script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "turns"
    csm("converse", script, "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", "--turns-dir", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["001-ana.wav", "002-b_n__é.wav", "003-ana.wav"]
    assert [soundfile.info(path).duration for path in sorted(folder.iterdir())] == [0.4, 0.4, 0.5]


def test_a_dry_run_prints_the_plan(csm: Csm, tiny_checkpoint: Path, script: Path, tmp_path: Path) -> None:
    result = csm("converse", script, "-n", "--model", tiny_checkpoint)
    assert result.code == 0 and not result.err
    context, first, second, third, total = result.out.splitlines()
    assert context.split()[:5] == ["context", "ana", "[0]", "Hi", "there"] and str(tmp_path / "tone.wav") in context
    assert first.split()[:4] == ["1", "ana", "[0]", "Hello."] and "b[n]/é [1]  Really?" in second
    assert "[about 0.4 s, 11 tokens, context 37]" in first and "[0.5 s, " in third
    assert total == "about 2.5 s in 3 turns; context: up to 76 of 512 positions"


def test_a_dry_run_shows_turns_dropped_from_context(csm: Csm, tmp_path: Path) -> None:
    """The bundled voice drops turns long before its window is full."""
    (tmp_path / "s.yaml").write_text("turns:\n" + "  - 0: We can walk down to the river now.\n" * 12)
    lines = csm("converse", tmp_path / "s.yaml", "-n").out.splitlines()
    assert ", turn 1 dropped from context]" in "".join(lines[:-1])
    assert "of 300 " in lines[-1] and "dropped from the context" in lines[-1]


def test_a_dry_run_as_json(csm: Csm, tiny_checkpoint: Path, script: Path) -> None:
    plan = csm("converse", script, "-n", "--json", "--model", tiny_checkpoint).json
    assert [turn["text"] for turn in plan["turns"]] == ["Hello.", "Really?", "Not once."]
    assert plan["turns"][1]["gain"] == -6 and plan["context"][0]["audio"].endswith("tone.wav")
    assert plan["estimated_s"] == 2.5 and plan["context_window"] == {
        "peak": plan["turns"][2]["context_positions"],
        "positions": 512,
        "soft_limit": 512,
        "dropped_turns": 0,
    }


def test_a_dry_run_needs_a_model_and_no_torch(csm: Csm, script: Path, tmp_path: Path) -> None:
    assert csm("converse", script, "-n", "--model", tmp_path / "none").code == 4
    code = (
        "import sys; from csm_cli.cli import main; main(['converse', sys.argv[1], '-n']); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=True)
    assert "of 300 (this voice's limit) positions" in result.stdout and result.stdout.endswith("False\n")


def test_a_dry_run_checks_the_output_that_is_named(csm: Csm, script: Path, tmp_path: Path) -> None:
    assert csm("converse", script, "-n", "-o", tmp_path).code == 2


def test_nothing_is_written_where_a_turn_comes_out_empty(
    csm: Csm, silent_checkpoint: Path, script: Path, tmp_path: Path
) -> None:
    result = csm("converse", script, "--model", silent_checkpoint, "-o", tmp_path / "a.wav")
    assert result.code == 1 and 'turn 1 (ana: "Hello.") came out empty' in result.err
    assert not (tmp_path / "a.wav").exists()


def test_a_turns_file_may_not_be_the_track(csm: Csm, script: Path, tmp_path: Path) -> None:
    result = csm("converse", script, "-o", tmp_path / "001-ana.wav", "--turns-dir", tmp_path)
    assert result.code == 2 and "written twice" in result.err


def seeds(csm: Csm, checkpoint: Path, tmp_path: Path, *flags: str) -> list[int]:
    result = csm("converse", tmp_path / "s.yaml", "--model", checkpoint, "-o", tmp_path / "a.wav", "--json", *flags)
    return [turn["seed"] for turn in result.json["turns"]]


def test_flag_over_turn_over_speaker_over_script_over_environment(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "defaults: {{max_duration: 0.1{defaults}}}\nspeakers: {{a: {{id: 0{speaker}}}}}\n"
    script += "turns:\n  - {{speaker: a, text: Hi{turn}}}\n"
    monkeypatch.setenv("CSM_SEED", "1")
    layers = {"defaults": ", seed: 2", "speaker": ", seed: 4", "turn": ", seed: 5"}
    found = []
    for count, flags in ((0, []), (1, []), (2, []), (3, []), (3, ["--seed", "0"])):
        given = {name: text if at < count else "" for at, (name, text) in enumerate(layers.items())}
        (tmp_path / "s.yaml").write_text(script.format(**given))
        found += seeds(csm, tiny_checkpoint, tmp_path, *flags)
    assert found == [1, 2, 4, 5, 0]


@pytest.fixture
def converse(csm: Csm, tiny_checkpoint: Path, script: Path, tmp_path: Path) -> Csm:
    return lambda *flags: csm("converse", script, "--model", tiny_checkpoint, "-o", tmp_path / "o" / "a.wav", *flags)


def pcm(path: Path) -> NDArray[np.int64]:
    return soundfile.read(path, dtype="int16")[0].astype(np.int64)


def test_stems_lie_beside_the_track_and_add_up_to_it(converse: Csm, tmp_path: Path) -> None:
    assert converse("--stems", "--loudness", "-19").code == 0
    stems = [tmp_path / "o" / "a.ana.wav", tmp_path / "o" / "a.b_n__é.wav"]
    assert np.array_equal(sum(pcm(stem) for stem in stems), pcm(tmp_path / "o" / "a.wav"))
    with soundfile.SoundFile(stems[1]) as file:
        assert file.title == "b[n]/é" and "seed" in file.comment


def test_names_that_become_the_same_in_a_files_name_get_numbers(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cast = "speakers: {a b: {id: 0}, a_b: {id: 1}, A-B: {id: 2}, a-b: {id: 3}}"
    turns = "".join(f"\n  - {name}: Hi." for name in ("a b", "a_b", "A-B", "a-b"))
    (tmp_path / "s.yaml").write_text(f"{cast}\nturns:{turns}\n")
    out = tmp_path / "o.flac"
    flags = ("--max-duration", "0.1", "--stems")
    metadata = csm("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "-o", out, "--json", *flags).json
    names = {name: Path(path).name for name, path in metadata["stems"].items()}
    assert names == {"a b": "o.a_b.flac", "a_b": "o.a_b-2.flac", "A-B": "o.A-B.flac", "a-b": "o.a-b-2.flac"}
    assert all((tmp_path / name).exists() for name in names.values())


def test_turns_are_written_as_they_sound_in_the_track(converse: Csm, tmp_path: Path) -> None:
    converse("--turns-dir", tmp_path / "t")
    track, second = pcm(tmp_path / "o" / "a.wav"), pcm(tmp_path / "t" / "002-b_n__é.wav")
    assert np.array_equal(second, track[round(0.9 * 24000) :][: len(second)]) and second.any()


def test_subtitles_and_sidecar_lie_beside_the_track(converse: Csm, tmp_path: Path, tiny_checkpoint: Path) -> None:
    metadata = converse("--subs", "srt,vtt,json", "--json").json
    srt = (tmp_path / "o" / "a.srt").read_text(encoding="utf-8")
    assert "\n2\n" not in srt[:2] and "00:00:00,900 --> 00:00:01,300\nb[n]/é: Really?" in srt
    assert "<v b[n]/é>Really?" in (tmp_path / "o" / "a.vtt").read_text(encoding="utf-8")
    cues = json.loads((tmp_path / "o" / "a.json").read_text(encoding="utf-8"))
    assert [cue["speaker"] for cue in cues] == ["ana", "b[n]/é", "ana"]
    sidecar = json.loads((tmp_path / "o" / "a.wav.json").read_text(encoding="utf-8"))
    assert sidecar["synthetic"] is True and sidecar["model"] == str(tiny_checkpoint)
    assert sidecar["turns"] == metadata["turns"] and sidecar["script"]["context"][0]["text"] == "Hi there"


def test_no_sidecar(converse: Csm, tmp_path: Path) -> None:
    converse("--no-sidecar")
    assert [path.name for path in (tmp_path / "o").iterdir() if not path.name.startswith(".")] == ["a.wav"]


def test_loudness_by_flag_over_script(converse: Csm, script: Path) -> None:
    script.write_text(script.read_text(encoding="utf-8").replace("gap: 0.5,", "gap: 0.5, loudness: -25,"), "utf-8")
    for flags, target in (((), -25), (("--loudness", "-19.5"), -19.5)):
        metadata = converse("--json", *flags).json["loudness"]
        assert metadata["target_lufs"] == target == pytest.approx(metadata["lufs"], abs=0.5)
        assert metadata["true_peak_dbtp"] <= -1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loudness", "3"], "-70 to -5"),
        (["--loudness", "nan"], "-70 to -5"),
        (["--subs", "srt,ass"], "'ass'"),
        (["--subs", "srt", "-o", "-"], "beside the track"),
        (["--redo", "1", "-o", "-"], "beside the track"),
        (["--redo", "x"], "not a turn number, turn id or speaker"),
        (["--redo", ""], "not a turn number"),
        (["--redo", "2-1"], "1-2"),
        (["--redo", "anna"], "did you mean ana?"),
        (["--redo", "last"], "did you mean last-one?"),
        (["--from", "b.wav", "-o", "-"], "beside the track"),
        (["--from", "b.wav"], "has no cached turns"),
        (["--redo", "4"], "there is no turn 4"),
        (["--redo", "1-3"], "is a recording"),
        (["-o", "{script}"], "is read by this run"),
        (["-o", "{folder}/tone.wav"], "is read by this run"),
    ],
)
def test_impossible_requests_are_refused_before_the_model_is_loaded(
    csm: Csm, script: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    given = [flag.format(script=script, folder=tmp_path) for flag in flags]
    result = csm(
        "converse", script, "--model", "no/such", *(() if "-o" in given else ("-o", tmp_path / "a.wav")), *given
    )
    assert result.code == 2 and message in result.err and "loading" not in result.err
    assert sorted(tmp_path.iterdir()) == before


def reused(result: Result) -> list[bool]:
    assert result.code == 0, result.err
    return [turn["reused"] for turn in result.json["turns"]]


@pytest.fixture
def edited(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Result]:
    """Runs converse on these texts, one turn each, with the same track as before."""

    def run(texts: str, *flags: str) -> Result:
        turns = "".join(f"\n  - {{speaker: {index % 2}, text: {text}}}" for index, text in enumerate(texts.split()))
        (tmp_path / "s.yaml").write_text(f"defaults: {{max_duration: 0.2, temperature: 0.9}}\nturns:{turns}\n")
        out = tmp_path / "o.wav"
        return csm("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "-o", out, "--json", *flags)

    return run


def test_the_same_command_again_generates_nothing_and_writes_the_same(edited: Csm, tmp_path: Path) -> None:
    first = edited("One Two Three")
    sound = (tmp_path / "o.wav").read_bytes()
    again = edited("One Two Three")
    assert reused(first) == [False] * 3 and reused(again) == [True] * 3
    assert (tmp_path / "o.wav").read_bytes() == sound and "--fresh" in again.err
    assert [turn["seed"] for turn in again.json["turns"]] == [turn["seed"] for turn in first.json["turns"]]
    assert reused(edited("One Two Three", "--fresh")) == [False] * 3


def test_only_an_edited_turn_is_generated_again_without_cascade(edited: Csm) -> None:
    edited("One Two Three Four", "--seed", "3")
    plain = edited("One Zwei Three Four", "--seed", "3")
    assert reused(plain) == [True, False, True, True] and "turns 3-4" in plain.err and "--cascade" in plain.err
    assert reused(edited("One Zwei Three Four", "--seed", "3", "--cascade")) == [True, True, False, False]
    again = edited("One Zwei Three Four", "--seed", "3", "--cascade")
    assert reused(again) == [True] * 4 and "--cascade" not in again.err


def test_a_cascade_equals_a_fresh_run(edited: Csm, tmp_path: Path) -> None:
    edited("One Two Three", "--seed", "3")
    edited("One Zwei Three", "--seed", "3", "--cascade")
    cascaded = (tmp_path / "o.wav").read_bytes()
    assert reused(edited("One Zwei Three", "--seed", "3", "--fresh")) == [False] * 3
    assert (tmp_path / "o.wav").read_bytes() == cascaded


def test_turns_are_found_again_when_others_come_and_go(edited: Csm) -> None:
    first = edited("Yes No Yes No Bye")
    again = edited("Yes No Hm Now Yes No Bye")
    assert reused(again) == [True, True, False, False, True, True, True]
    seeds = [turn["seed"] for turn in first.json["turns"]]
    assert [turn["seed"] for turn in again.json["turns"] if turn["reused"]] == seeds


def test_another_seed_or_option_generates_again_and_no_seed_reuses(edited: Csm) -> None:
    edited("One Two", "--seed", "3")
    assert reused(edited("One Two")) == [True] * 2
    assert reused(edited("One Two", "--seed", "3", "--temperature", "0.8")) == [False] * 2
    assert reused(edited("One Two", "--seed", "4", "--temperature", "0.8")) == [False] * 2


def test_redo_generates_turns_with_new_seeds_and_they_stay(edited: Csm) -> None:
    first = [turn["seed"] for turn in edited("One Two Three Four", "--seed", "3").json["turns"]]
    redone = edited("One Two Three Four", "--redo", "2, 4-4", "--seed", "70")
    assert reused(redone) == [True, False, True, False]
    seeds = [turn["seed"] for turn in redone.json["turns"]]
    assert seeds == [first[0], 71, first[2], 73]
    again = edited("One Two Three Four", "--seed", "3")
    assert reused(again) == [True] * 4 and [turn["seed"] for turn in again.json["turns"]] == seeds
    drawn = edited("One Two Three Four", "--redo", "2").json["turns"][1]["seed"]
    assert drawn not in (first[1], 71)


def test_an_interrupted_run_continues(edited: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    add, count = TurnCache.add, iter(range(9))

    def interrupted(self: TurnCache, *given: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return add(self, *given)

    monkeypatch.setattr(TurnCache, "add", interrupted)
    cut = edited("One Two Three")
    assert cut.code == 130
    assert reused(edited("One Two Three")) == [True, True, False]


@pytest.mark.parametrize("damage", ["codes", "sound", "record", "version"])
def test_a_damaged_cache_is_reported_and_generated_again(edited: Csm, tmp_path: Path, damage: str) -> None:
    edited("One Two")
    folder = tmp_path / ".o.csm"
    record = folder / "turns.json"
    first = json.loads(record.read_text())["turns"][0]["digest"]
    if damage == "record":
        record.write_text("{")
    elif damage == "version":
        record.write_text(record.read_text().replace('"schema": ', '"schema": 9'))
    else:
        (folder / f"{first}.{'npy' if damage == 'codes' else 'wav'}").write_bytes(b"x" * 100)
    again = edited("One Two")
    assert reused(again) == ([False, True] if damage in ("codes", "sound") else [False, False])
    assert ("ignored" if damage == "version" else "generated again") in again.err


def test_a_removed_turn_is_reused_when_it_comes_back(edited: Csm) -> None:
    first = edited("One Two Three")
    shorter = edited("One")
    assert reused(shorter) == [True] and shorter.code == 0
    again = edited("One Two Three")
    assert reused(again) == [True] * 3
    assert [turn["seed"] for turn in again.json["turns"]] == [turn["seed"] for turn in first.json["turns"]]


@pytest.mark.parametrize("redo", [("--redo", "2"), ("--fresh",)], ids=" ".join)
def test_a_rejected_turn_does_not_come_back(edited: Csm, redo: tuple[str, ...]) -> None:
    seeds = [edited("One Two").json["turns"][1]["seed"], edited("One Two", *redo).json["turns"][1]["seed"]]
    edited("One")
    assert [edited("One Two").json["turns"][1]["seed"]] == seeds[1:]


@pytest.mark.parametrize("redo", [("--redo", "1-4"), ("--fresh",)], ids=" ".join)
def test_an_interrupted_redo_prints_how_to_continue(
    edited: Csm, monkeypatch: pytest.MonkeyPatch, redo: tuple[str, ...]
) -> None:
    first = [turn["seed"] for turn in edited("One Two Three Four").json["turns"]]
    add, count = TurnCache.add, iter(range(9))

    def interrupted(self: TurnCache, *given: Any) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return add(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(TurnCache, "add", interrupted)
        assert "--redo 3-4" in edited("One Two Three Four", *redo).err
    again = edited("One Two Three Four", "--redo", "3-4")
    assert reused(again) == [True, True, False, False]
    assert not set(first) & {turn["seed"] for turn in again.json["turns"]}


def test_files_of_an_earlier_run_are_reported(edited: Csm, tmp_path: Path) -> None:
    assert "left from" not in edited("One Two", "--stems", "--subs", "srt,vtt").err
    again = edited("One Zwei", "--subs", "vtt").err
    assert "o.0.wav" in again and "o.1.wav" in again and "o.srt: left from an earlier" in again and "o.vtt" not in again
    assert "o.wav.json: left from an earlier" in edited("One Two", "--no-sidecar").err


def test_two_runs_cannot_write_one_track_at_a_time(edited: Csm, tmp_path: Path) -> None:
    with lock_track(tmp_path / "o.wav"):
        refused = edited("One Two")
    assert refused.code == 2 and "o.wav is in use" in refused.err
    assert reused(edited("One Two")) == [False] * 2


def test_a_reused_turn_is_context_as_when_it_was_generated(edited: Csm, tmp_path: Path) -> None:
    """Greedy, so that a turn depends on its context alone."""
    edited("One Two Three", "--temperature", "0")
    track = pcm(tmp_path / "o.wav")
    assert reused(edited("One Two Three", "--temperature", "0", "--redo", "3")) == [True, True, False]
    assert np.array_equal(pcm(tmp_path / "o.wav"), track)


def test_subtitles_do_not_replace_the_script(csm: Csm, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('{"turns": [{"speaker": 0, "text": "Hi."}]}')
    result = csm("converse", tmp_path / "talk.json", "-o", tmp_path / "talk.wav", "--subs", "json")
    assert result.code == 2 and "talk.json" in result.err


def test_a_report_has_a_row_for_each_turn(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text('title: "A </script> b"\nturns:\n  - 0: Hello.\n  - 1: Hi there.\n')
    flags = ("--model", tiny_checkpoint, "--max-duration", "0.4", "--report", tmp_path / "r.html")
    assert csm("converse", path, "-o", tmp_path / "s.wav", *flags).code == 0
    page, rows = re.findall(
        r'<script id="(?:page|data)"[^>]*>(.*?)</script>', (tmp_path / "r.html").read_text("utf-8"), re.DOTALL
    )
    assert json.loads(page)["title"] == "A </script> b" and json.loads(page)["track"]["duration"] == 0.8
    assert [(row["speaker"], row["text"], row["from"], row["to"]) for row in json.loads(rows)] == [
        ("0", "Hello.", 0.0, 0.4),
        ("1", "Hi there.", 0.4, 0.8),
    ]
    assert csm("converse", path, "-o", tmp_path / "s.wav", "--report", tmp_path).code == 2


def test_a_turn_that_fails_leaves_the_others_reused(
    edited: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, count = TakeBuilder.finish, iter(range(9))

    def faulty(self: TakeBuilder, stop: str) -> Take:
        take = end(self, stop)
        return replace(take, fault="came out wrong") if next(count) == 1 else take

    monkeypatch.setattr(TakeBuilder, "finish", faulty)
    failed = edited("One Two Three", "--retries", "0", "--seed", "5")
    assert failed.code == 1 and "--redo 2" in failed.err
    assert not (tmp_path / "o.wav").exists()
    assert reused(edited("One Two Three", "--redo", "2")) == [True, False, False]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model or a codec is an error."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("csm_cli.generation.synthesizer.CsmModel", fail)
    monkeypatch.setattr("csm_cli.generation.synthesizer.Codec.load", fail)


def performance(result: Result) -> list[tuple[int, int]]:
    assert result.code == 0, result.err
    return [(turn["seed"], turn["frames"]) for turn in result.json["turns"]]


def test_another_format_reuses_the_performance_without_a_model(
    edited: Csm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = edited("One Two Three")
    sound = soundfile.read(tmp_path / "o.wav", dtype="int16")[0]
    request.getfixturevalue("no_model")
    again = edited("One Two Three", "-o", str(tmp_path / "o.flac"))
    assert performance(again) == performance(first) and reused(again) == [True] * 3
    assert again.json["device"] is None and again.json["rtf"] is None and "loading" not in again.err
    assert soundfile.info(tmp_path / "o.flac").format == "FLAC"
    assert np.array_equal(soundfile.read(tmp_path / "o.flac", dtype="int16")[0], sound)


def test_another_name_reuses_the_performance_of_a_named_track(
    edited: Csm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = edited("One Two Three")
    request.getfixturevalue("no_model")
    other = ("-o", str(tmp_path / "b" / "other.wav"))
    copied = edited("One Two Three", *other, "--from", str(tmp_path / "o.wav"))
    assert performance(copied) == performance(first)
    (tmp_path / ".o.csm" / "turns.json").unlink()
    assert performance(edited("One Two Three", *other)) == performance(first), "they are its own now"


def test_a_script_of_recordings_is_mixed_without_a_model(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path, no_model: None
) -> None:
    (tmp_path / "s.yaml").write_text(f"turns:\n  - {{speaker: 0, audio: {tone}, text: Hi}}\n  - {{pause: 0.5}}\n")
    result = csm("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", "--json")
    assert result.code == 0, result.err
    assert result.json["turns"][0]["stop"] == "recorded" and result.json["turns"][0]["frames"] == 7
    assert soundfile.info(tmp_path / "a.wav").duration == pytest.approx(1.0)


def test_redo_takes_ids_and_speakers(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path) -> None:
    turns = f"""
  - ana: One.
  - {{speaker: ben, text: Two., id: t2}}
  - {{speaker: ben, text: Three., audio: {tone}}}
  - ben: Four.
  - ana: Five.
"""
    (tmp_path / "s.yaml").write_text(
        f"defaults: {{max_duration: 0.1}}\nspeakers: {{ana: {{id: 0}}, ben: {{id: 1}}}}\nturns:{turns}"
    )

    def run(*flags: str) -> list[bool]:
        return reused(
            csm(
                *("converse", tmp_path / "s.yaml", "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", "--json"),
                *flags,
            )
        )

    run()
    assert run("--redo", "ben") == [True, False, False, False, True]
    assert run("--redo", "t2, 5") == [True, False, False, True, False]
    assert run("--redo", "ana,2") == [False, False, False, True, False]


def test_lines_carry_the_number_of_their_turn(edited: Csm) -> None:
    err = edited("One Two Three").err
    assert [line.split()[0] for line in err.splitlines() if "/3 " in line] == ["1/3", "2/3", "3/3"]
    assert "3/3 [0]: Three  [" in err
