"""csm say: from a text to a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Result, write_tone

from csm_cli.cli import main

Csm = Callable[..., Result]
FRAME = 1920


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path) -> Csm:
    return lambda *arguments: csm("say", "--model", tiny_checkpoint, "--max-duration", "0.4", *arguments)


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes, tty: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stdin", stream)


def test_writes_a_file_and_says_so(say: Csm, tmp_path: Path) -> None:
    result = say("Hello there.", "-o", tmp_path / "out.wav")
    assert result.code == 0, result.err
    assert result.out == f"{tmp_path / 'out.wav'}\n"
    assert "0.4 s of speech" in result.err and "RTF" in result.err and "seed" in result.err
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (5 * FRAME, 24000, 1, "PCM_16")


def test_warns_of_a_turn_that_was_cut(say: Csm, tmp_path: Path) -> None:
    warnings = [line for line in say("Hi", "-o", tmp_path / "a.wav").err.splitlines() if line.startswith("csm: ")]
    assert len(warnings) == 1 and "was cut after 0.4 s" in warnings[0]


def test_quiet_prints_the_path_only(say: Csm, tmp_path: Path) -> None:
    result = say("Hi", "-q", "-o", tmp_path / "out.flac")
    assert result.out == f"{tmp_path / 'out.flac'}\n"
    assert not [line for line in result.err.splitlines() if not line.startswith("csm: ")]
    assert soundfile.info(tmp_path / "out.flac").format == "FLAC"


def test_json_tells_all(say: Csm, tmp_path: Path, tiny_checkpoint: Path) -> None:
    told = say("[0]Hi. [1]Hello!", "--json", "--seed", "7", "-o", tmp_path / "a.wav").json
    assert told["output"] == str(tmp_path / "a.wav") and told["model"] == str(tiny_checkpoint)
    assert told["duration_s"] == 0.8 and told["stop"] == "cap" and told["seed"] == 7 and told["rtf"] > 0
    assert len(told["warnings"]) == 2
    assert [(turn["speaker"], turn["text"], turn["seed"], turn["frames"]) for turn in told["turns"]] == [
        ("0", "Hi.", 7, 5),
        ("1", "Hello!", 8, 5),
    ]
    assert [(turn["start_s"], turn["end_s"]) for turn in told["turns"]] == [(0.0, 0.4), (0.4, 0.8)]


def test_a_pipe_gets_a_complete_wav_and_nothing_else(
    tiny_checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["say", "Hi", "-o", "-", "--model", str(tiny_checkpoint), "--max-duration", "0.4"]) == 0
    samples, rate = soundfile.read(io.BytesIO(capfdbinary.readouterr().out))
    assert (len(samples), rate) == (5 * FRAME, 24000)


@pytest.mark.parametrize("source", ["argument", "file", "dash", "stdin"])
def test_the_text_comes_from_anywhere(say: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    standard_input(monkeypatch, "Grüße 👋\n".encode() if source in ("dash", "stdin") else b"not this")
    (tmp_path / "text.txt").write_text("\ufeffGrüße 👋\n", encoding="utf-8")
    given = {"argument": ["Grüße 👋"], "file": ["-f", tmp_path / "text.txt"], "dash": ["-"], "stdin": []}[source]
    told = say(*given, "--json", "-o", tmp_path / "a.wav").json
    assert told["turns"][0]["text"] == "Grüße 👋"


@pytest.mark.parametrize(
    ("given", "typed", "tty", "message"),
    [
        (["Hi", "-f", "text.txt"], b"", False, "both given"),
        (["-", "-f", "text.txt"], b"", False, "both given"),
        ([], b"", False, "empty"),
        ([], b"", True, "give it as an argument"),
        (["  "], b"", False, "empty"),
    ],
)
def test_two_texts_or_none_are_a_usage_error(
    say: Csm, monkeypatch: pytest.MonkeyPatch, given: list[str], typed: bytes, tty: bool, message: str
) -> None:
    standard_input(monkeypatch, typed, tty)
    result = say(*given, "-o", "a.wav")
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1


def test_markup_and_special_tokens_are_spoken_as_written(say: Csm, tmp_path: Path) -> None:
    text = "[bold]Hi[/bold] :smile: <|AUDIO|> [link=x]y"
    result = say(text, "-o", tmp_path / "a.wav")
    assert result.code == 0 and text in result.err


def test_a_terminal_is_not_steered_by_a_text(say: Csm, tmp_path: Path) -> None:
    result = say("Hi \x1b[31mred", "-o", tmp_path / "a.wav")
    assert "\x1b[31m" not in result.err


def test_paths_may_hold_spaces_and_anything(say: Csm, tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "grüße [1] =é👋.wav"
    heard = write_tone(tmp_path / "früh = er.wav")
    result = say("Hi", "-o", path, "--context", f"[1]{heard}=Hi = there")
    assert result.code == 0 and result.out == f"{path}\n" and path.exists()


def test_context_changes_what_is_said(say: Csm, tmp_path: Path, tone: Path) -> None:
    plain, heard = tmp_path / "plain.wav", tmp_path / "heard.wav"
    say("Hi", "-o", plain)
    say("Hi", "-o", heard, "--context", f"[1]{tone}=Hi there")
    assert not np.array_equal(soundfile.read(plain)[0], soundfile.read(heard)[0])


def test_a_voice_is_the_speakers_first_context(say: Csm, tmp_path: Path, tone: Path) -> None:
    tone.with_suffix(".txt").write_text("Hi there\n")
    ways = [["-v", tone], ["-v", f"{tone}=Hi there"]]
    ways += [["--context", f"[{speaker}]{tone}=Hi there"] for speaker in (3, 4)]
    takes = []
    for way in ways:
        assert say("Hi", "-s", "3", "--seed", "1", "-o", tmp_path / "a.wav", *way).code == 0
        takes.append((tmp_path / "a.wav").read_bytes())
    assert takes[0] == takes[1] == takes[2] != takes[3]


def test_a_seed_repeats_a_take(say: Csm, tmp_path: Path) -> None:
    takes = []
    for seed in (1, 1, 2):
        assert say("Hi", "--temperature", "1", "--top-k", "0", "--seed", seed, "-o", tmp_path / "a.wav").code == 0
        takes.append((tmp_path / "a.wav").read_bytes())
    assert takes[0] == takes[1] != takes[2]


def test_no_clobber_refuses_before_anything_is_loaded(say: Csm, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"mine")
    result = say("Hi", "--no-clobber", "-o", path)
    assert result.code == 2 and path.read_bytes() == b"mine" and "loading" not in result.err
    assert say("Hi", "-o", path).code == 0 and path.read_bytes() != b"mine"


def test_an_empty_take_fails_and_writes_nothing(csm: Csm, mute_checkpoint: Path, tmp_path: Path) -> None:
    result = csm("say", "Hi", "--model", mute_checkpoint, "-o", tmp_path / "a.wav")
    assert result.code == 1 and "came out empty" in result.err and not (tmp_path / "a.wav").exists()


def test_audio_is_not_written_to_a_terminal(say: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = say("Hi", "-o", "-")
    assert result.code == 2 and "terminal" in result.err


def test_json_and_audio_do_not_share_a_pipe(say: Csm) -> None:
    assert say("Hi", "-o", "-", "--json").code == 2


def test_a_text_of_untagged_brackets_is_one_turn(say: Csm, tmp_path: Path) -> None:
    told = json.loads(say("Look at [1] and [2].", "--json", "-o", tmp_path / "a.wav").out)
    assert [turn["text"] for turn in told["turns"]] == ["Look at [1] and [2]."]


def test_the_environment_names_the_model(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("CSM_MAX_DURATION", "0.2")
    told = csm("say", "Hi", "--json", "-o", tmp_path / "a.wav").json
    assert told["model"] == str(tiny_checkpoint) and told["duration_s"] == 0.16


@pytest.fixture
def wild(csm: Csm, tiny_checkpoint: Path) -> Csm:
    """A checkpoint that cannot say end, sampled freely."""
    return lambda *arguments: csm("say", "Hi", "--model", tiny_checkpoint, "--temperature", 1, "--seed", 7, *arguments)


def test_a_model_that_never_ends_fails_with_every_seed_it_tried(wild: Csm, tmp_path: Path) -> None:
    result = wild("--retries", 1, "-o", tmp_path / "a.wav")
    (failure,) = [line for line in result.err.splitlines() if line.startswith("csm: ")]
    assert result.code == 1 and not (tmp_path / "a.wav").exists()
    assert 'turn 1 (0: "Hi") had not ended after 3.4 s with seed 7, had not ended after 3.4 s with seed 8;' in failure
    assert "--no-trim" in failure


def test_untrimmed_it_is_as_the_model_made_it(wild: Csm, tmp_path: Path) -> None:
    result = wild("--no-trim", "--json", "-o", tmp_path / "a.wav")
    assert result.code == 0 and "was cut after 3.4 s" in result.err
    assert result.json["stop"] == "cap" and result.json["turns"][0]["frames"] == 42


def test_a_duration_that_was_asked_for_is_no_fault(wild: Csm, tmp_path: Path) -> None:
    told = wild("--max-duration", 0.4, "--json", "-o", tmp_path / "a.wav").json
    (take,) = told["turns"][0]["takes"]
    assert take == {"seed": 7, "stop": "cap", "duration_s": 0.4, "fault": None}


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_the_file_says_that_it_is_synthetic_and_by_what(
    say: Csm, tmp_path: Path, tiny_checkpoint: Path, suffix: str
) -> None:
    say("[0]Hi. [1]Hello!", "--seed", "7", "-o", tmp_path / f"a.{suffix}")
    with soundfile.SoundFile(tmp_path / f"a.{suffix}") as file:
        assert file.comment == f"synthetic speech; model: {tiny_checkpoint.name}; seed: 7-8"
        assert file.software.startswith("csm-cli ")


def test_the_home_of_nobody(say: Csm) -> None:
    result = say("Hi", "-o", "~nobody-of-that-name/a.wav")
    assert result.code == 2 and "no such user" in result.err
