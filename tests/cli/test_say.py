"""csm say: a text to a file."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from helpers.audio import write_tone
from helpers.run import Result

from csm_cli.cli import main
from csm_cli.generation.take import Take, TakeBuilder

Csm = Callable[..., Result]
FRAME = 1920


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path) -> Csm:
    return lambda *arguments: csm("say", "--model", tiny_checkpoint, "--max-duration", "0.4", *arguments)


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes, tty: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stdin", stream)


def test_writes_a_file_and_a_summary(say: Csm, tmp_path: Path) -> None:
    result = say("Hello there.", "-o", tmp_path / "out.wav")
    assert result.code == 0, result.err
    assert result.out == f"{tmp_path / 'out.wav'}\n"
    assert "generated 0.4 s" in result.err and "RTF" in result.err and "seed" in result.err
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (5 * FRAME, 24000, 1, "PCM_16")


def test_warns_of_a_turn_that_was_cut(say: Csm, tmp_path: Path) -> None:
    warnings = [line for line in say("Hi", "-o", tmp_path / "a.wav").err.splitlines() if line.startswith("csm: ")]
    assert len(warnings) == 1 and "maximum duration of 0.4 s" in warnings[0]


def test_quiet_prints_the_path_only(say: Csm, tmp_path: Path) -> None:
    result = say("Hi", "-q", "-o", tmp_path / "out.flac")
    assert result.out == f"{tmp_path / 'out.flac'}\n"
    assert not [line for line in result.err.splitlines() if not line.startswith("csm: ")]
    assert soundfile.info(tmp_path / "out.flac").format == "FLAC"


def test_json_has_all_results(say: Csm, tmp_path: Path, tiny_checkpoint: Path) -> None:
    report = say("[0]Hi. [1]Hello!", "--json", "--seed", "7", "-o", tmp_path / "a.wav").json
    assert report["output"] == str(tmp_path / "a.wav") and report["model"] == str(tiny_checkpoint)
    assert report["duration_s"] == 0.8 and report["stop"] == "cap" and report["seed"] == 7 and report["rtf"] > 0
    assert len(report["warnings"]) == 2
    assert [(turn["speaker"], turn["text"], turn["seed"], turn["frames"]) for turn in report["turns"]] == [
        ("0", "Hi.", 7, 5),
        ("1", "Hello!", 8, 5),
    ]
    assert [(turn["start_s"], turn["end_s"]) for turn in report["turns"]] == [(0.0, 0.4), (0.4, 0.8)]


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
    report = say(*given, "--json", "-o", tmp_path / "a.wav").json
    assert report["turns"][0]["text"] == "Grüße 👋"


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


def test_context_changes_the_audio(say: Csm, tmp_path: Path, tone: Path) -> None:
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


def test_no_clobber_refuses_before_loading(say: Csm, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"mine")
    result = say("Hi", "--no-clobber", "-o", path)
    assert result.code == 2 and path.read_bytes() == b"mine" and "loading" not in result.err
    assert say("Hi", "-o", path).code == 0 and path.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["Hi", "--context", "[0]tone.wav=Words."], "tone.wav"),
        (["Hi", "-v", "tone.wav=Words."], "sub/../tone.wav"),
        (["Hi", "-v", "tone.wav"], "tone.wav"),
        (["Hi", "-v", "tone.wav", "--format", "wav"], "tone.txt"),
        (["Hi", "-v", "link.wav=Words."], "tone.wav"),
        (["-f", "tone.txt", "--format", "wav"], "tone.txt"),
    ],
)
def test_an_input_is_not_replaced(
    say: Csm, tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tone.txt").write_text("Words.")
    (tmp_path / "link.wav").symlink_to(tone)
    before = tone.read_bytes()
    result = say(*arguments, "-o", output)
    assert result.code == 2 and str(Path(output)) in result.err and len(result.err.splitlines()) == 1
    assert tone.read_bytes() == before and (tmp_path / "tone.txt").read_text() == "Words."


def test_an_unused_transcript_file_may_be_replaced(say: Csm, tmp_path: Path, tone: Path) -> None:
    assert say("Hi", "-v", f"{tone}=Words.", "--format", "wav", "-o", tone.with_suffix(".txt")).code == 0


def test_a_missing_text_is_reported_before_a_missing_output(say: Csm, played_audio: SimpleNamespace) -> None:
    played_audio.missing = True
    result = say("")
    assert result.code == 2 and "no text to say" in result.err and "output" not in result.err


def test_standard_input_is_not_read_for_a_refused_output(
    say: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standard_input(monkeypatch, b"Hello there.", tty=True)
    assert say("-", "-o", tmp_path).code == 2 and sys.stdin.read() == "Hello there."


def test_an_empty_take_fails_and_writes_nothing(csm: Csm, silent_checkpoint: Path, tmp_path: Path) -> None:
    result = csm("say", "Hi", "--model", silent_checkpoint, "-o", tmp_path / "a.wav")
    assert result.code == 1 and "came out empty" in result.err and not (tmp_path / "a.wav").exists()


def test_audio_is_not_written_to_a_terminal(say: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = say("Hi", "-o", "-")
    assert result.code == 2 and "terminal" in result.err


def test_json_and_audio_do_not_share_a_pipe(say: Csm) -> None:
    assert say("Hi", "-o", "-", "--json").code == 2


def test_a_text_of_untagged_brackets_is_one_turn(say: Csm, tmp_path: Path) -> None:
    report = json.loads(say("Look at [1] and [2].", "--json", "-o", tmp_path / "a.wav").out)
    assert [turn["text"] for turn in report["turns"]] == ["Look at [1] and [2]."]


def test_the_environment_names_the_model(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSM_MODEL", str(tiny_checkpoint))
    monkeypatch.setenv("CSM_MAX_DURATION", "0.2")
    report = csm("say", "Hi", "--json", "-o", tmp_path / "a.wav").json
    assert report["model"] == str(tiny_checkpoint) and report["duration_s"] == 0.16


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


def test_no_trim_keeps_the_take_as_generated(wild: Csm, tmp_path: Path) -> None:
    result = wild("--no-trim", "--json", "-o", tmp_path / "a.wav")
    assert result.code == 0 and "3.4 s" in result.err
    assert result.json["stop"] == "cap" and result.json["turns"][0]["frames"] == 42


def test_a_requested_duration_is_not_a_fault(wild: Csm, tmp_path: Path) -> None:
    report = wild("--max-duration", 0.4, "--json", "-o", tmp_path / "a.wav").json
    (take,) = report["turns"][0]["takes"]
    assert take == {
        "number": 1,
        "chunk": 1,
        "seed": 7,
        "stop": "cap",
        "duration_s": 0.4,
        "fault": None,
        "transcript": None,
        "word_error_rate": None,
        "picked": True,
    }


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_the_file_is_tagged_as_synthetic_with_model_and_seeds(
    say: Csm, tmp_path: Path, tiny_checkpoint: Path, suffix: str
) -> None:
    say("[0]Hi. [1]Hello!", "--seed", "7", "-o", tmp_path / f"a.{suffix}")
    with soundfile.SoundFile(tmp_path / f"a.{suffix}") as file:
        assert file.comment == f"synthetic speech; model: {tiny_checkpoint.name}; seed: 7-8"
        assert file.software.startswith("csm-cli ")


def test_an_unknown_users_home(say: Csm) -> None:
    result = say("Hi", "-o", "~nobody-of-that-name/a.wav")
    assert result.code == 2 and "no such user" in result.err


LONG = "One is here. Two is here. Three is here."


@pytest.fixture
def parted(csm: Csm, silent_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Csm:
    """Every take is five frames of a tone, whatever the model says."""
    monkeypatch.setattr("csm_cli.generation.synthesizer.TakeBuilder", Tone)
    return lambda *arguments: csm("say", "--model", silent_checkpoint, "--seed", 7, *arguments)


class Tone(TakeBuilder):
    def finish(self, stop: str) -> Take:
        made = super().finish(stop)
        codes, samples = torch.ones(5, 8, dtype=torch.int64), np.full(5 * FRAME, 0.1, np.float32)
        return replace(made, codes=codes, samples=samples, stop="eos", fault="")


def test_a_long_text_is_split_into_chunks_with_times(parted: Csm, tmp_path: Path) -> None:
    result = parted(LONG, "--split", 20, "--json", "-o", tmp_path / "a.wav")
    (turn,) = result.json["turns"]
    assert [segment["text"] for segment in turn["segments"]] == ["One is here.", "Two is here.", "Three is here."]
    starts = [segment["start_s"] for segment in turn["segments"]]
    assert starts == sorted(starts) and starts[0] == 0 and turn["segments"][-1]["end_s"] == turn["end_s"]
    assert [(take["chunk"], take["seed"]) for take in turn["takes"]] == [(1, 7), (2, 8), (3, 9)]
    assert turn["frames"] == 15 and "3 chunks, seed 7" in result.err


@pytest.mark.parametrize("flags", [["--split", "off"], ["--split", "20", "--no-trim"], [], ["--max-duration", "9"]])
def test_chunking_can_be_off(parted: Csm, tmp_path: Path, flags: list[str]) -> None:
    (turn,) = parted(LONG, *flags, "--json", "-o", tmp_path / "a.wav").json["turns"]
    assert len(turn["segments"]) == len(turn["takes"]) == 1


def test_all_takes_are_reported(parted: Csm, tmp_path: Path) -> None:
    result = parted("Hi", "--takes", 3, "--temperature", 1, "--json", "-o", tmp_path / "a.wav")
    assert [take["seed"] for take in result.json["turns"][0]["takes"]] == [7, 8, 9]
    assert ", 3 takes, seed 7" in result.err


def test_a_speaker_without_context_gets_a_warning(parted: Csm, tmp_path: Path, tone: Path) -> None:
    result = parted("[0]Hi. [1]Ho. [0]Hi.", "--context", f"[1]{tone}=Hello", "--json", "-o", tmp_path / "a.wav")
    (warning,) = result.json["warnings"]
    assert warning.startswith('turn 1 (0: "Hi."): speaker 0') and "speaker 1" in warning
    assert f"csm: {warning}" in result.err.splitlines()


def test_context_use_is_reported(parted: Csm, tmp_path: Path) -> None:
    result = parted("[0]Hi. [1]Ho.", "--json", "-o", tmp_path / "a.wav")
    assert result.json["context_window"] == {"peak": 22, "positions": 512, "soft_limit": 512, "dropped_turns": 0}
    assert "context: up to 22 of 512 positions" in result.err


def test_turns_dropped_from_context_are_reported_once(say: Csm, tmp_path: Path) -> None:
    words = "word " * 35  # a position a character
    result = say(f"[0]{words} [1]{words} [0]{words}", "--json", "-o", tmp_path / "a.wav")
    assert [turn["dropped_turns"] for turn in result.json["turns"]] == [[], [], [1]]
    assert result.json["context_window"]["dropped_turns"] == 1
    *turns, total = result.err.splitlines()
    assert "1 turn dropped from the context" in total
    assert not [line for line in turns if "dropped" in line]


def test_chunks_of_the_turn_itself_do_not_count_as_dropped_turns(csm: Csm, tmp_path: Path) -> None:
    text = " ".join(["The old house by the river was empty all winter."] * 5)
    result = csm("say", text, "--json", "--seed", "1", "-o", tmp_path / "a.wav")
    assert result.json["turns"][0]["dropped_turns"] and result.json["context_window"]["dropped_turns"] == 0
    assert "dropped" not in result.err


class Ears:
    """Hears another text than any."""

    def __init__(self, name: str, language: str | None = None) -> None:
        self.name = name

    def load(self) -> None:
        pass

    def transcribe(self, audio: object) -> str:
        return f"some words {self.name} made up"


def test_a_take_with_wrong_words_fails(parted: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm_cli.generation.verification.WhisperRecognizer", Ears)
    flags = ["--verify", "--verify-model", "tiny", "--temperature", 1, "--retries", 1, "-o", tmp_path / "a.wav"]
    result = parted("Hello there.", *flags)
    assert result.code == 1 and not (tmp_path / "a.wav").exists()
    assert result.err.count('was recognized as "some words tiny made up"') == 2
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "19"], "--split takes auto, off or characters from 20"),
        (["--split", "-1"], "--split takes"),
        (["--split", "²²"], "--split takes"),
        (["--no-trim", "--takes", "2"], "--no-trim"),
        (["--no-trim", "--verify"], "--no-trim"),
        (["--takes", "0"], "--takes"),
    ],
)
def test_contradicting_take_options_are_usage_errors(say: Csm, flags: list[str], message: str) -> None:
    result = say("Hi", "-o", "a.wav", *flags)
    assert result.code == 2 and message in result.err and "loading" not in result.err


def test_a_missing_recognizer_is_reported_before_loading(say: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm_cli.generation.verification.find_spec", lambda name: None)
    result = say("Hi", "-o", "a.wav", "--verify")
    assert result.code == 2 and result.err.splitlines() == [
        "csm: --verify, --word-times and --transcribe need a recognizer; pip install 'csm-cli[verify]'"
    ]


def test_a_long_text_is_abbreviated(say: Csm, tmp_path: Path) -> None:
    report = say("Once more. " * 40, "--max-duration", "0.2", "-o", tmp_path / "a.wav").err
    (line,) = [each for each in report.splitlines() if each.startswith("[0]: ")]
    assert "Once more. On ...  [" in line and len(line) < 260
