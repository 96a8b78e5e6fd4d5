"""--word-times in say, converse, batch and takes; Whisper is replaced by one that hears the words it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from helpers.run import Result

from csm_cli.audio.io import Audio
from csm_cli.errors import ModelNotFound
from csm_cli.generation import verification
from csm_cli.generation.verification import RecognizedWord

Csm = Callable[..., Result]
SHORT = ("--max-duration", "0.4", "--seed", "7")


class Ears:
    """Hears "hello there" in each window of audio, from 0.6 s on."""

    names: list[tuple[str, str | None]]

    def __init__(self, name: str, language: str | None = None) -> None:
        self.names.append((name, language))

    def load(self) -> None:
        pass

    def words(self, audio: Audio) -> list[RecognizedWord]:
        return [RecognizedWord("hello", 0.6, 0.7), RecognizedWord("there", 0.7, 0.8)]


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    monkeypatch.setattr(Ears, "names", [], raising=False)
    monkeypatch.setattr(verification, "WhisperRecognizer", Ears)
    return Ears.names


def test_say_writes_them_to_subtitles_and_json(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, ears: list[tuple[str, str | None]]
) -> None:
    track = tmp_path / "a.wav"
    flags = ("--word-times", "--subs", "srt,vtt,json", "--verify-model", "tiny", "--json")
    result = csm("say", "Hello there, Ana.", "--model", tiny_checkpoint, "-o", track, *SHORT, *flags)
    assert result.code == 0, result.err
    (segment,) = result.json["turns"][0]["segments"]
    assert [(word["text"], word["recognized"]) for word in segment["words"]] == [
        ("Hello", True),
        ("there,", True),
        ("Ana.", False),
    ]
    assert segment["words"][0]["start_s"] == pytest.approx(0.1) and segment["words"][2]["end_s"] <= segment["end_s"]
    assert track.with_suffix(".srt").read_text().split("\n\n")[1].endswith("\nthere,")
    assert "<00:00:00.200>there, <00:00:00.300>Ana." in track.with_suffix(".vtt").read_text()
    assert json.loads(track.with_suffix(".json").read_text())[0]["words"][1]["text"] == "there,"
    assert ears == [("tiny", "en")]


def test_converse_writes_them_to_metadata_and_takes_keeps_them(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, ears: list[tuple[str, str | None]]
) -> None:
    (tmp_path / "s.yaml").write_text("turns:\n- ana: Hello there.\n- ben: Two.\n")
    track = tmp_path / "out.wav"
    flags = ("--word-times", "--subs", "vtt", "--takes", "2", "--keep-takes", "--temperature", "0.9")
    assert csm("converse", tmp_path / "s.yaml", "-o", track, "--model", tiny_checkpoint, *SHORT, *flags).code == 0

    def words() -> list[str]:
        turns = json.loads((tmp_path / "out.wav.json").read_text())["turns"]
        return [word["text"] for turn in turns for segment in turn["segments"] for word in segment["words"]]

    assert words() == ["Hello", "there.", "Two."]
    (tmp_path / "out.wav.json").unlink()
    picked = csm("takes", track, "--pick", "1=2", "--verify-model", "small.en")
    assert picked.code == 0, picked.err
    assert words() == ["Hello", "there.", "Two."] and ears[-1] == ("small.en", "en")
    assert "<00:00:00.200>there." in track.with_suffix(".vtt").read_text()


def test_batch_writes_them_to_results_and_subtitles(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, ears: list[tuple[str, str | None]]
) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "Hello there."}\n')
    command = ("batch", tmp_path / "m.jsonl", "-o", tmp_path / "o/{id}.wav", "--model", tiny_checkpoint, *SHORT)
    assert csm(*command).code == 0 and ears == []
    result = csm(*command, "--word-times", "--subs", "srt")
    assert result.code == 0 and "1 written" in result.err, result.err
    record = json.loads((tmp_path / "o/results.jsonl").read_text().splitlines()[-1])
    assert [word["text"] for word in record["turns"][0]["segments"][0]["words"]] == ["Hello", "there."]
    assert (tmp_path / "o/a.srt").read_text().count("-->") == 2
    assert "1 reused" in csm(*command, "--word-times", "--subs", "srt").err


def test_words_of_a_recording_have_times_too(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, ears: list[tuple[str, str | None]]
) -> None:
    from helpers.audio import write_tone

    write_tone(tmp_path / "tone.wav")
    (tmp_path / "s.yaml").write_text("turns:\n- {speaker: ana, audio: tone.wav, text: Hello there.}\n")
    result = csm(
        "converse", tmp_path / "s.yaml", "-o", tmp_path / "o.wav", "--model", tiny_checkpoint, "--word-times", "--json"
    )
    assert result.code == 0, result.err
    assert len(result.json["turns"][0]["segments"][0]["words"]) == 2


@pytest.mark.usefixtures("ears")
def test_times_that_go_nowhere_are_an_error(csm: Csm, tmp_path: Path) -> None:
    result = csm("say", "Hi.", "-o", tmp_path / "a.wav", "--word-times")
    assert result.code == 2 and "--subs" in result.err and len(result.err.splitlines()) == 1
    (tmp_path / "s.yaml").write_text("turns:\n- ana: Hello there.\n")
    result = csm("converse", tmp_path / "s.yaml", "-o", tmp_path / "a.wav", "--word-times", "--no-sidecar")
    assert result.code == 2 and "--subs" in result.err


@pytest.mark.parametrize("command", ["say", "converse", "batch"])
def test_without_the_extra_one_line_says_what_to_install(
    csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    (tmp_path / "s.yaml").write_text("turns:\n- ana: Hello there.\n")
    (tmp_path / "m.txt").write_text("Hello there.\n")
    source = {"say": "Hi.", "converse": tmp_path / "s.yaml", "batch": tmp_path / "m.txt"}[command]
    output = tmp_path / ("{id}.wav" if command == "batch" else "a.wav")
    result = csm(command, source, "-o", output, "--word-times", "--subs", "srt")
    assert result.code == 2 and "pip install 'csm-cli[verify]'" in result.err and len(result.err.splitlines()) == 1


def test_a_language_that_the_model_does_not_know_is_an_error(
    csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "find_spec", lambda name: name)
    result = csm("say", "Hallo.", "-o", tmp_path / "a.wav", "--word-times", "--subs", "srt", "--language", "de")
    assert result.code == 2 and "knows only English; for de, name base or small" in result.err


@pytest.mark.parametrize("flags", [("--verify",), ("--word-times", "--subs", "srt")])
@pytest.mark.parametrize("command", ["say", "batch"])
def test_a_model_that_cannot_be_loaded_is_an_error_before_anything_is_generated(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, flags: tuple[str]
) -> None:
    class Missing(Ears):
        names: ClassVar[list[tuple[str, str | None]]] = []

        def load(self) -> None:
            raise ModelNotFound("--verify-model base.en: cannot be loaded (no network); name a size or a folder")

    monkeypatch.setattr(verification, "WhisperRecognizer", Missing)
    (tmp_path / "m.txt").write_text("Hello there.\n")
    source, name = ("Hello there.", "a.wav") if command == "say" else (tmp_path / "m.txt", "{id}.wav")
    result = csm(command, source, "-o", tmp_path / name, "--model", tiny_checkpoint, *SHORT, *flags)
    assert result.code == 4 and result.err.splitlines()[-1].startswith("csm: --verify-model base.en: cannot be loaded")
    assert "Hello" not in result.err and not list(tmp_path.glob("*.wav"))
