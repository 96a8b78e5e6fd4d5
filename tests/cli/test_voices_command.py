"""csm voices, and speaking with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from helpers.audio import RATE, WORDS, speech, write_m4a
from helpers.run import Result
from helpers.tiny import Shape, random_csm, save_checkpoint
from numpy.typing import NDArray

import csm_cli.generation.verification
from csm_cli.audio.io import Audio
from csm_cli.errors import AudioUnreadable
from csm_cli.models.mimi import Codec

Csm = Callable[..., Result]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a clip.wav"
    soundfile.write(path, speech(), RATE)
    return path


@pytest.fixture
def add(csm: Csm, clip: Path, tiny_checkpoint: Path) -> Csm:
    given = ("--text", WORDS.text, "--license", "CC0", "--model", tiny_checkpoint)
    return lambda name, *flags: csm("voices", "add", name, clip, *given, *flags)


@pytest.fixture
def say(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., bytes]:
    """The bytes of what is said with these flags."""

    def call(*flags: object) -> bytes:
        output = tmp_path / "said.wav"
        run = ("say", "Hi", "--model", tiny_checkpoint, "--max-duration", "0.4", "--seed", "1", "-o", output)
        assert csm(*run, *flags).code == 0
        return output.read_bytes()

    return call


def test_a_voice_is_added_listed_shown_and_removed(csm: Csm, add: Csm) -> None:
    result = add("ana", "--source", "recorded [here]")
    assert result.code == 0 and "voice ana saved, 6." in result.err, result.err
    assert "csm: " not in result.err
    listed = {voice["name"]: voice for voice in csm("voices", "list", "--json").json}
    assert (
        list(listed)[-1] == "ana"
        and listed["ash"]["bundled"]
        and listed["ana"]
        == {
            "name": "ana",
            "seconds": listed["ana"]["seconds"],
            "text": WORDS.text,
            "license": "CC0",
            "source": "recorded [here]",
            "audio": listed["ana"]["audio"],
            "bundled": False,
        }
    )
    assert result.out.strip() == listed["ana"]["audio"] and soundfile.info(result.out.strip()).samplerate == RATE
    assert "recorded [here]" in csm("voices", "show", "ana").out
    assert "ana" in csm("voices", "list").out and csm("voices", "rm", "ana").code == 0
    assert csm("voices", "show", "ana").code == 4


@pytest.mark.parametrize("way", ["flag", "file", "beside"])
def test_the_transcript_comes_from_flag_or_file(
    csm: Csm, clip: Path, tiny_checkpoint: Path, tmp_path: Path, way: str
) -> None:
    (tmp_path / "words.txt").write_text(f"\ufeff{WORDS.text}\n", encoding="utf-8")
    if way == "beside":
        (tmp_path / "words.txt").rename(clip.with_suffix(".txt"))
    given = {"flag": ["--text", WORDS.text], "file": ["--text-file", tmp_path / "words.txt"], "beside": []}[way]
    added = csm("voices", "add", "ana", clip, *given, "--model", tiny_checkpoint, "--json")
    assert added.json["text"] == WORDS.text and "no --license" in added.err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "transcript is missing"),
        (["--text", "a", "--text-file", "b"], 2, "keep one"),
        (["--text", "a", "--transcribe"], 2, "keep one"),
        (["--text", " . "], 3, "text is empty"),
        (["--text", "Hi \x1b there"], 3, "U+001B cannot be spoken"),
        (["--text", "Hi", "--license", "caf\udce9"], 3, "U+DCE9"),
        (["--text-file", "none.txt"], 3, "none.txt: No such file"),
        (["--text", "Hi", "--start", "99"], 3, "past the end"),
        (["--text", "Hi", "--end", "0.5"], 3, "s of speech"),
    ],
)
def test_unusable_clips_and_transcripts_are_refused(
    csm: Csm, clip: Path, tiny_checkpoint: Path, home: Path, flags: list[str], code: int, message: str
) -> None:
    result = csm("voices", "add", "ana", clip, "--model", tiny_checkpoint, *flags)
    assert result.code == code and message in result.err and len(result.err.splitlines()) == 1
    assert not list(home.iterdir())


@pytest.fixture
def recognized(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for Whisper: `text` is what it recognizes, `durations` are those of the clips it was given."""
    fake = SimpleNamespace(text=f" {WORDS.text}\n", durations=[], models=[])

    class FakeRecognizer:
        def __init__(self, name: str) -> None:
            fake.models.append(name)

        def transcribe(self, audio: Audio) -> str:
            fake.durations.append(audio.duration)
            return str(fake.text)

    monkeypatch.setattr(csm_cli.generation.verification, "WhisperRecognizer", FakeRecognizer)
    return fake


def test_a_voice_without_words_is_transcribed(
    csm: Csm, clip: Path, tiny_checkpoint: Path, recognized: SimpleNamespace
) -> None:
    run = ("voices", "add", "ana", clip, "--license", "CC0", "--model", tiny_checkpoint, "--transcribe")
    added = csm(*run, "--start", "1", "--end", "5.5", "--verify-model", "small")
    assert added.code == 0 and f'"{WORDS.text}"' in added.err, added.err
    assert csm("voices", "show", "ana", "--json").json["text"] == WORDS.text
    assert recognized.durations == [4.5] and recognized.models == ["small"]
    recognized.text = " ... "
    failed = csm(*run, "--replace")
    assert failed.code == 3 and str(clip) in failed.err and "no words" in failed.err
    clip.with_suffix(".txt").write_text(WORDS.text)  # has its words
    assert csm(*run, "--replace").code == 0


def test_clips_without_words_are_transcribed_for_a_text(
    csm: Csm, clip: Path, tiny_checkpoint: Path, recognized: SimpleNamespace, tmp_path: Path
) -> None:
    run = ("say", "Hi", "-s", "3", "--model", tiny_checkpoint, "--max-duration", "0.4", "--seed", "1")
    made = {}
    for name, flags in {
        "voice": ["-v", clip, "--transcribe"],
        "context": ["--context", f"[3]{clip}", "--transcribe"],
        "given": ["--context", f"[3]{clip}={WORDS.text}", "--transcribe"],
        "wrong": ["--context", f"[3]{clip}=Other words than these"],
    }.items():
        result = csm(*run, *flags, "-o", tmp_path / f"{name}.wav")
        assert result.code == 0, result.err
        made[name] = (tmp_path / f"{name}.wav").read_bytes()
    assert made["voice"] == made["context"] == made["given"] != made["wrong"]
    assert len(recognized.durations) == 2
    refused = csm(*run, "--context", f"[3]{clip}", "-o", tmp_path / "a.wav")
    assert refused.code == 2 and "--transcribe" in refused.err
    refused = csm(*run, "-v", clip, "-o", tmp_path / "a.wav")
    assert refused.code == 4 and "--transcribe" in refused.err


def test_transcribing_without_a_recognizer_is_an_error(
    csm: Csm, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csm_cli.generation.verification, "find_spec", lambda name: None)
    for run in (["voices", "add", "ana", clip], ["say", "Hi", "-v", clip, "-o", tmp_path / "a.wav"]):
        result = csm(*run, "--transcribe")
        assert result.code == 2 and "pip install 'csm-cli[verify]'" in result.err


@pytest.mark.parametrize("suffix", ["mp3", "m4a"])
def test_other_formats_make_a_voice_too(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"anna.{suffix}"
    if suffix == "mp3":
        soundfile.write(path, speech(), RATE)
    else:
        write_m4a(path, speech())
    run = ("--license", "CC0", "--model", tiny_checkpoint)
    added = csm("voices", "add", "anna", path, "--text", WORDS.text, *run)
    assert added.code == 0 and "csm: " not in added.err, added.err
    assert 5.8 < csm("voices", "show", "anna", "--json").json["seconds"] < 6.3
    said = csm("say", "Hi", "-v", "anna", *run[2:], "--max-duration", "0.4", "-o", tmp_path / "hi.wav")
    assert said.code == 0, said.err


def test_librosa_and_its_cache_are_not_needed(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba fails where it finds no folder for a cache: in an installation that nobody may write to."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setitem(sys.modules, "librosa", None)
    soundfile.write(tmp_path / "a.wav", np.repeat(speech(), 2), 2 * RATE)
    (tmp_path / "a.yaml").write_text(
        f"speakers: {{ana: {{voice: a.wav, voice_text: {WORDS.text!r}}}}}\nturns: [{{ana: Hi}}]\n"
    )
    run = ("--model", tiny_checkpoint, "--max-duration", "0.4")
    assert csm("voices", "add", "ana", tmp_path / "a.wav", "--text", WORDS.text, *run[:2]).code == 0
    made = csm("converse", tmp_path / "a.yaml", *run, "-o", tmp_path / "a.wav.wav", "--report", tmp_path / "a.html")
    assert made.code == 0, made.err


@pytest.mark.parametrize(
    ("samples", "fact"),
    [
        (speech(0.03), "30 ms"),
        (np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1, "noise"),
        (np.stack([speech(), -speech()], axis=1), "out of phase"),
    ],
    ids=["tiny", "noise", "out of phase"],
)
def test_a_poor_clip_is_told_wherever_it_is_given(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, samples: NDArray[np.float32], fact: str
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, samples, RATE)
    clip.with_suffix(".txt").write_text(WORDS.text)
    for name, content in {
        "voice.yaml": "speakers: {ana: {voice: clip.wav}}\nturns: [{ana: Hi}]",
        "context.yaml": "context: [{speaker: ana, text: Hello there, audio: clip.wav}]\nturns: [{ana: Hi}]",
        "turn.yaml": "turns: [{speaker: ana, text: Hello there, audio: clip.wav}]",
    }.items():
        (tmp_path / name).write_text(content)
    run = ("--model", tiny_checkpoint, "--max-duration", "0.4", "-o", tmp_path / "a.wav")
    for given in (
        ["say", "Hi", "-v", clip],
        ["say", "Hi", "--context", f"[0]{clip}=Hello there"],
        *(["converse", tmp_path / name, "--fresh"] for name in ("voice.yaml", "context.yaml", "turn.yaml")),
    ):
        result = csm(*given, *run)
        lines = [line for line in result.err.splitlines() if "clip.wav" in line]
        assert result.code == 0 and len(lines) == 1 and fact in lines[0], (given, result.err)


def test_a_silent_clip_is_refused_where_it_gives_a_voice(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.zeros(2 * RATE, np.float32), RATE)
    (tmp_path / "a.yaml").write_text("speakers: {ana: {voice: clip.wav, voice_text: Hello there}}\nturns: [{ana: Hi}]")
    run = ("--model", tiny_checkpoint, "--max-duration", "0.4", "-o", tmp_path / "a.wav")
    for given in (["say", "Hi", "--context", f"[0]{clip}=Hello there"], ["converse", tmp_path / "a.yaml"]):
        result = csm(*given, *run)
        assert result.code == 3 and "clip.wav: is silent" in result.err and not (tmp_path / "a.wav").exists()


def test_a_missing_clip_is_named(csm: Csm, tiny_checkpoint: Path) -> None:
    result = csm("voices", "add", "ana", "none.wav", "--text", "Hi", "--model", tiny_checkpoint)
    assert result.code == 3 and "none.wav: No such file" in result.err


def test_nothing_is_removed_if_one_name_is_unknown(csm: Csm, add: Csm) -> None:
    add("ana")
    result = csm("voices", "rm", "ana", "anna")
    assert result.code == 4 and "did you mean ana" in result.err and csm("voices", "show", "ana").code == 0


def test_a_saved_voice_equals_its_clip_as_context(add: Csm, csm: Csm, say: Callable[..., bytes]) -> None:
    add("ana")
    audio = csm("voices", "show", "ana", "--json").json["audio"]
    saved = say("-v", "ana", "-s", "3")
    assert saved == say("--context", f"[3]{audio}={WORDS.text}", "-s", "3") != say("-s", "3")


def test_it_is_encoded_once_for_each_codec(
    add: Csm, csm: Csm, say: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("ana")
    other = save_checkpoint(random_csm(Shape(codebooks=4)), tmp_path / "other")
    run = ("say", "Hi", "-v", "ana", "--max-duration", "0.4", "--seed", "1", "-o", tmp_path / "b.wav", "--model", other)
    assert "encoding the voice ana" in csm(*run).err
    first = (tmp_path / "b.wav").read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(Codec, "encode", refuse)
    result = csm(*run)
    assert result.code == 0 and "encoding the voice" not in result.err and (tmp_path / "b.wav").read_bytes() == first
    say("-v", "ana")


@pytest.mark.parametrize("name", ["anna", "none.wav", "a/b", "x" * 300])
def test_an_unknown_voice_is_an_error(csm: Csm, add: Csm, tmp_path: Path, name: str) -> None:
    add("ana")
    result = csm("say", "Hi", "-v", name, "-o", tmp_path / "a.wav")
    assert result.code == 4 and "no voice" in result.err and len(result.err.splitlines()) == 1
    assert ("did you mean ana" in result.err) == (name == "anna")


def script(voice: str) -> str:
    return f"speakers: {{ana: {{id: 3, voice: {voice}}}}}\nturns: [{{ana: Hi}}]\n"


def test_scripts_and_batch_lines_name_voices(
    csm: Csm, add: Csm, say: Callable[..., bytes], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    add("saved")
    (tmp_path / "a.yaml").write_text(script("saved"))
    line = {"id": "a", "speaker": 3, "text": "Hi", "voice": "saved"}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line))
    run = ("--model", tiny_checkpoint, "--max-duration", "0.4", "--seed", "0", "-o", tmp_path / "out" / "{id}.wav")
    wanted = say("-v", "saved", "-s", "3", "--seed", "0")
    assert csm("converse", tmp_path / "a.yaml", *run[:-1], tmp_path / "a.wav").code == 0
    assert (tmp_path / "a.wav").read_bytes() == wanted
    assert csm("batch", tmp_path / "lines.jsonl", *run).code == 0
    assert (tmp_path / "out" / "a.wav").read_bytes() == wanted


@pytest.mark.parametrize(
    ("text", "diagnostic"),
    [
        (script("savd"), "speakers.ana.voice    no voice 'savd'; did you mean saved?"),
        (script("savd.wav"), "speakers.ana.voice    no such file: savd.wav"),
        (script("saved, voice_text: Hi"), "speakers.ana.voice_text has no effect on a saved voice"),
        ('{"text": "Hi", "voice": "savd"}', "did you mean saved?"),
        ('{"text": "Hi", "voice_text": "Ho"}', 'has no effect without "voice"'),
        ('{"text": "[0]Hi [1]Ho", "voice": "saved"}', "has several"),
    ],
)
def test_check_names_unknown_voices(csm: Csm, add: Csm, tmp_path: Path, text: str, diagnostic: str) -> None:
    add("saved")
    path = tmp_path / ("a.jsonl" if text.startswith("{") else "a.yaml")
    path.write_text(text)
    result = csm("check", path)
    assert result.code == 3 and diagnostic in result.err


def test_a_file_beside_a_script_has_precedence_over_a_voice(csm: Csm, add: Csm, tmp_path: Path) -> None:
    add("saved")
    (tmp_path / "saved").write_text("no sound")
    (tmp_path / "a.yaml").write_text(script("saved"))
    assert "not readable as audio" in csm("check", tmp_path / "a.yaml").err


@pytest.mark.parametrize(("shell", "typed"), [("bash", "csm say -v a"), ("bash", "csm voices show a")])
def test_a_shell_completes_the_names(add: Csm, home: Path, shell: str, typed: str) -> None:
    add("ana")
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_CSM_COMPLETE": f"complete_{shell}"}
    run = [sys.executable, "-c", "import sys; from csm_cli.cli import main; sys.exit(main())"]
    done = subprocess.run(run, env=os.environ | words | {"CSM_HOME": str(home)}, capture_output=True, text=True)
    assert done.stdout.split() == ["ash", "ana"] and not done.stderr


def test_voices_play_plays_the_clip(csm: Csm, played_audio: SimpleNamespace) -> None:
    assert csm("voices", "play", "ash").code == 0
    assert (
        played_audio.rate == RATE
        and sum(map(len, played_audio.chunks))
        == soundfile.info(csm("voices", "show", "ash", "--json").json["audio"]).frames
    )


def test_a_clip_that_is_not_there_is_named_before_its_transcript(csm: Csm, tmp_path: Path) -> None:
    result = csm("voices", "add", "ana", tmp_path / "none.mp3")
    assert result.code == AudioUnreadable.code and "none.mp3: No such file" in result.err
