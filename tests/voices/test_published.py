"""csm voices pull: the clips that a repository publishes, from a hub of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.audio import write_tone
from helpers.fakehub import COMMIT, ID, FakeHub, dead_server

from csm_cli.checkpoint.find import OFFICIAL, has_random_voice
from csm_cli.voices.published import OFFICIAL_TEXTS, voice_name
from csm_cli.voices.store import find_voice

Csm = Callable[..., Any]


@pytest.fixture
def published(hub: FakeHub, tmp_path: Path) -> Path:
    """A repository with three clips, one of them with its text beside it."""
    folder = hub.repositories[ID] = hub.repositories[OFFICIAL] = tmp_path / "repository"
    (folder / "prompts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_tone(folder / "prompts" / "conversational_a.wav", seconds=3.0)
    for name in ("read_speech_b.wav", "my voice.wav"):
        shutil.copy(folder / "prompts" / "conversational_a.wav", folder / "prompts" / name)
    (folder / "prompts" / "my voice.txt").write_text("My own\nwords.")
    (folder / "prompts" / "notes.md").write_text("no clip")
    return folder


def test_the_official_clips_come_with_their_words(csm: Csm, published: Path) -> None:
    done = csm("voices", "pull", OFFICIAL, "conversational_a", "read_speech_b", "--json")
    assert done.code == 0 and [voice["name"] for voice in done.json] == ["conversational_a", "read_speech_b"]
    voice = find_voice("conversational_a")
    assert voice.info.text == OFFICIAL_TEXTS["conversational_a"] and voice.audio.is_file()
    assert COMMIT in voice.info.source and OFFICIAL in voice.info.license


def test_words_come_from_a_file_beside_the_clip(csm: Csm, published: Path) -> None:
    assert csm("voices", "pull", ID, "my_voice").code == 0
    assert find_voice("my_voice").info.text == "My own words."


def test_unknown_words_are_transcribed_or_refused(csm: Csm, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = csm("voices", "pull", ID, "read_speech_b")
    assert refused.code == 2 and "--transcribe" in refused.err and len(refused.err.splitlines()) == 1
    monkeypatch.setattr("csm_cli.generation.verification.WhisperRecognizer", lambda name: None)
    monkeypatch.setattr("csm_cli.generation.verification.transcribe_clip", lambda *_: "Recognized words.")
    assert csm("voices", "pull", ID, "read_speech_b", "--transcribe").code == 0
    assert find_voice("read_speech_b").info.text == "Recognized words."


def test_a_voice_that_is_there_stays_unless_it_is_replaced(csm: Csm, published: Path) -> None:
    csm("voices", "pull", OFFICIAL, "conversational_a")
    again = csm("voices", "pull", OFFICIAL, "conversational_a", "--json")
    assert again.code == 0 and again.json == [] and "--replace" in again.err
    assert len(csm("voices", "pull", OFFICIAL, "conversational_a", "--replace", "--json").json) == 1


def test_a_pulled_repository_is_pulled_offline_again(
    csm: Csm, published: Path, point_to: Callable[[str], None], home: Path
) -> None:
    csm("voices", "pull", OFFICIAL, "conversational_a")
    point_to(dead_server())
    csm("voices", "rm", "conversational_a")
    assert csm("voices", "pull", OFFICIAL, "conversational_a", "--offline").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ((OFFICIAL, "conversational_z"), 4, "conversational_a"),
        (("nobody/nothing",), 4, "nobody/nothing"),
        (("not an id",), 4, "not an id"),
    ],
)
def test_what_is_not_published_is_one_line(
    csm: Csm, published: Path, arguments: tuple[str, ...], code: int, named: str
) -> None:
    done = csm("voices", "pull", *arguments)
    assert done.code == code and named in done.err and len(done.err.splitlines()) == 1


def test_a_repository_without_clips_and_a_gated_one_are_one_line(csm: Csm, hub: FakeHub, published: Path) -> None:
    hub.gated.add(OFFICIAL)
    done = csm("voices", "pull")
    assert done.code == 4 and "gated" in done.err and len(done.err.splitlines()) == 1
    shutil.rmtree(published / "prompts")
    done = csm("voices", "pull", ID)
    assert done.code == 4 and OFFICIAL in done.err and len(done.err.splitlines()) == 1


def test_a_folder_is_no_repository(csm: Csm, tiny_checkpoint: Path) -> None:
    done = csm("voices", "pull", tiny_checkpoint)
    assert done.code == 2 and "csm voices add" in done.err


def test_names_are_made_of_files() -> None:
    assert voice_name("prompts/My Voice (1).wav") == "My_Voice_1"


def test_a_model_with_a_random_voice_says_how_to_get_a_steady_one(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, tone: Path
) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "csm-1b")
    assert has_random_voice("unsloth/csm-1b") and not has_random_voice(str(tiny_checkpoint))
    options = ("--model", model, "--max-duration", 0.3, "-o", tmp_path / "a.wav")
    notes = [line for line in csm("say", "Hi.", *options).err.splitlines() if "csm voices pull" in line]
    assert len(notes) == 1 and "-v NAME" in notes[0]
    assert "voices pull" not in csm("say", "Hi.", *options, "--context", f"{tone}=Hello.").err
    assert "voices pull" not in csm("say", "Hi.", *options, "-q").err
