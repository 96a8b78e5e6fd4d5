"""Saved voices: adding, finding and removing them, the cache of codes, and warnings about clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.audio import RATE, WORDS, speech
from numpy.typing import NDArray

from csm_cli.audio.io import Audio, read_audio
from csm_cli.errors import AudioUnreadable, OutputFailed, OutputRefused, VoiceInvalid, VoiceNotFound
from csm_cli.voices.clip import prepare_clip
from csm_cli.voices.store import (
    VoiceInfo,
    add_voice,
    cached_codes,
    find_voice,
    is_name,
    list_voices,
    remove_voice,
    voices_folder,
)

BUNDLED = ["ash", "birch", "cedar", "dune"]


def padded(samples: NDArray[np.float32], seconds: float = 1.0) -> Audio:
    return Audio(np.pad(samples, round(seconds * RATE)), RATE)


def test_bundled_voices_are_listed_and_clean() -> None:
    voices = list_voices()
    assert [voice.name for voice in voices] == BUNDLED and all(voice.bundled for voice in voices)
    for voice in voices:
        audio = read_audio(voice.audio, RATE)
        assert voice.info.license and "espeak-ng" in voice.info.source
        assert prepare_clip(audio, voice.info.text)[1] == []


def test_a_saved_voice_is_found(home: Path) -> None:
    audio = padded(speech())
    add_voice("ana", audio, WORDS)
    voice = find_voice("ana")
    assert voice.info == WORDS and not voice.bundled and voice.audio.is_relative_to(home)
    assert np.abs(read_audio(voice.audio, RATE).samples - audio.samples).max() < 1e-4
    turn = voice.turn(3, "Ana")
    assert (turn.speaker, turn.name, turn.text) == (3, "Ana", WORDS.text)
    assert turn.recording is not None and turn.recording.voice == "ana"


@pytest.mark.parametrize("name", ["", "a b", "../a", "a.wav", ".a", "-a", "ä", "a" * 65])
def test_a_path_is_not_a_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(OutputRefused):
        add_voice(name, padded(speech()), WORDS)
    with pytest.raises(VoiceNotFound):
        find_voice(name)


def test_a_name_that_is_taken_is_refused_until_replaced() -> None:
    add_voice("ana", padded(speech()), WORDS)
    with pytest.raises(OutputRefused, match="--replace"):
        add_voice("ana", padded(speech()), WORDS)
    add_voice("ana", padded(speech()), VoiceInfo("Others."), replace=True)
    assert find_voice("ana").info.text == "Others."
    with pytest.raises(OutputRefused, match="bundled"):
        add_voice("ash", padded(speech()), WORDS, replace=True)


def test_an_unknown_name_lists_similar_voices() -> None:
    add_voice("annabel", padded(speech()), WORDS)
    with pytest.raises(VoiceNotFound, match="did you mean annabel") as caught:
        find_voice("anabel")
    assert caught.value.code == 4
    with pytest.raises(VoiceNotFound, match="saved voices: ash, birch, cedar, dune, annabel"):
        find_voice("zzz")


def test_a_failed_write_leaves_the_old_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    add_voice("ana", padded(speech()), WORDS)

    def full(path: Path, data: bytes) -> None:
        raise OutputFailed("the disk is full")

    monkeypatch.setattr("csm_cli.voices.store.write_atomically", full)
    with pytest.raises(OutputFailed):
        add_voice("ana", padded(speech()), VoiceInfo("Others."), replace=True)
    assert find_voice("ana").info == WORDS
    assert [path.name for path in voices_folder().iterdir()] == ["ana"]


def test_a_removed_voice_leaves_nothing_behind(home: Path) -> None:
    voice = add_voice("ana", padded(speech()), WORDS)
    cached_codes(voice.audio, "codec", (8, 64), lambda: np.zeros((3, 8), np.int64))
    remove_voice("ana")
    assert not [path for path in home.rglob("*") if path.is_file()]
    with pytest.raises(VoiceNotFound):
        remove_voice("ana")
    with pytest.raises(OutputRefused, match="bundled"):
        remove_voice("ash")


@pytest.mark.parametrize("content", ["{", "[]", '{"texts": "Hi"}'])
def test_a_broken_voice_is_an_error_with_a_remedy(content: str) -> None:
    voice = add_voice("ana", padded(speech()), WORDS)
    (voice.folder / "voice.json").write_text(content)
    with pytest.raises(VoiceInvalid, match="and add it again"):
        find_voice("ana")
    (voice.folder / "voice.json").write_text(json.dumps({"text": "Hi"}))
    voice.audio.unlink()
    with pytest.raises(VoiceInvalid, match="clip is missing"):
        find_voice("ana")


def test_codes_are_encoded_once_for_each_codec() -> None:
    voice = add_voice("ana", padded(speech()), WORDS)
    asked: list[str] = []

    def codes(codec: str, value: int) -> int:
        def encode() -> NDArray[np.int64]:
            asked.append(codec)
            return np.full((3, 8), value)

        return int(cached_codes(voice.audio, codec, (8, 64), encode)[0, 0])

    assert [codes("a", 1), codes("b", 2), codes("a", 3), codes("b", 4)] == [1, 2, 1, 2]
    assert asked == ["a", "b"]
    add_voice("ana", padded(speech(level=0.2)), WORDS, replace=True)
    assert codes("a", 5) == 5


def test_half_written_codes_are_encoded_again(home: Path) -> None:
    voice = add_voice("ana", padded(speech()), WORDS)
    for value in (1, 2):
        assert cached_codes(voice.audio, "a", (8, 64), lambda: np.full((3, 8), value))[0, 0] == value  # noqa: B023
        (file,) = (home / "codes").iterdir()
        file.write_bytes(file.read_bytes()[:-7])


def test_codes_that_cannot_be_cached_are_returned(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    voice = add_voice("ana", padded(speech()), WORDS)
    (home / "codes").write_text("in the way")
    assert cached_codes(voice.audio, "a", (8, 64), lambda: np.full((3, 8), 1))[0, 0] == 1
    assert "are not cached" in caplog.text


def test_silence_around_speech_is_trimmed() -> None:
    clip, warnings = prepare_clip(padded(speech(), 2.0), WORDS.text)
    assert 5.9 < clip.duration < 6.4 and warnings == []


@pytest.mark.parametrize(
    ("samples", "text", "warning"),
    [
        (speech(3.0), "Hello there, how are you today?", "is short"),
        (speech(40.0), WORDS.text * 6, "is long"),
        (np.clip(speech(level=4.0), -1, 1), WORDS.text, "clipped"),
        (speech(noise=0.1), WORDS.text, "noisy"),
        (speech(), "Hi.", "unusual pace"),
        (speech(), WORDS.text * 5, "unusual pace"),
    ],
)
def test_a_poor_clip_gets_a_warning(samples: NDArray[np.float32], text: str, warning: str) -> None:
    _, (said,) = prepare_clip(padded(samples), text)
    assert warning in said


@pytest.mark.parametrize(
    ("samples", "reason"), [(np.zeros(48000, np.float32), "silence"), (speech(0.5), "s of speech")]
)
def test_a_clip_without_speech_is_refused(samples: NDArray[np.float32], reason: str) -> None:
    with pytest.raises(AudioUnreadable, match=reason):
        prepare_clip(padded(samples, 0.1), WORDS.text)


@pytest.mark.espeak
def test_the_bundled_voices_are_reproducible(tmp_path: Path) -> None:
    """In a process of its own: espeak-ng's noise goes on from what it has said before."""
    code = "import sys, pathlib, csm_cli.recipe.saved_voices as v; v.main(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    for voice in list_voices():
        made = tmp_path / voice.name
        assert json.loads((made / "voice.json").read_text()) == json.loads((voice.folder / "voice.json").read_text())
        assert np.array_equal(soundfile.read(made / "audio.flac")[0], soundfile.read(voice.audio)[0])
