"""What is kept of a dialogue beside its track: as it was, whole, and no more than is needed."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csm_cli.audio.io import Audio
from csm_cli.errors import OutputFailed, UsageError
from csm_cli.generation.events import Utterance
from csm_cli.generation.turn_cache import RECORD, CachedTurn, TurnCache, lock_track
from csm_cli.types import Conversation, Turn


def utterance(level: float) -> Utterance:
    turn = Turn(0, "Hello.")
    codes = torch.full((2, 4), round(level * 10), dtype=torch.int64)
    return Utterance(Conversation((turn,)), turn, codes, Audio(np.full(3840, level, np.float32), 24000), "eos")


def kept(number: int) -> CachedTurn:
    piece = {"text": "Hällo.", "start": 0.0, "end": 0.16, "frames": 2}
    return CachedTurn(
        number, "Hällo.", "mark", "heard", "", 7, None, "eos", ({"seed": 7},), (("Hällo.", 2),), (piece,), 30
    )


@pytest.fixture
def state(tmp_path: Path) -> TurnCache:
    found = TurnCache.beside(tmp_path / "out.wav")
    for number, level in enumerate((0.1, 0.2), 1):
        found.add(kept(number), utterance(level))
    return found


def files(state: TurnCache) -> list[str]:
    return sorted(path.name for path in state.folder.iterdir())


def test_what_was_kept_is_there_again(state: TurnCache, tmp_path: Path) -> None:
    again = TurnCache.beside(tmp_path / "out.wav")
    assert again.folder == tmp_path / ".out.wav.csm" and again.turns == state.turns
    assert [replace(turn, name="") for turn in again.turns] == [kept(1), kept(2)]
    recording = again.recording(again.turns[1])
    assert recording.codes_path and recording.chunks == (("Hällo.", 2),)
    assert np.array_equal(np.load(recording.codes_path), np.full((2, 4), 2))
    samples, rate = soundfile.read(recording.path, dtype="float32")
    assert rate == 24000 and np.array_equal(samples, np.full(3840, 0.2, np.float32))


def test_a_full_disk_is_told_of_the_output_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputFailed) as caught:
        TurnCache.beside(tmp_path / "out.wav").add(kept(1), utterance(0.1))
    said = f"{tmp_path / 'out.wav'}: its turns could not be kept beside it (No space left on device); make room"
    assert str(caught.value).startswith(said) and not list(tmp_path.iterdir())


def test_each_output_has_its_own(state: TurnCache, tmp_path: Path) -> None:
    assert state.turns and not TurnCache.beside(tmp_path / "out.flac").turns


def test_the_same_sound_is_kept_once(state: TurnCache) -> None:
    before = files(state)
    state.add(kept(3), utterance(0.2))
    assert files(state) == before and len(state.turns) == 3


def test_what_is_no_longer_needed_goes_with_its_files(state: TurnCache) -> None:
    last = state.turns[1]
    state.settle([last], disliked=state.turns[:1])
    assert files(state) == sorted([f"{last.name}.npy", f"{last.name}.wav", RECORD])


def test_what_is_not_in_the_track_stays_for_a_script_that_has_it_again(
    state: TurnCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = state.turns
    state.settle([last], [])
    assert state.turns == [first, last] and len(files(state)) == 5
    third = state.add(kept(3), utterance(0.3))
    monkeypatch.setattr("csm_cli.generation.turn_cache._OTHERS", 1)
    state.settle([third], [])
    assert state.turns == [last, third]


def test_one_run_at_a_time_keeps_turns(tmp_path: Path) -> None:
    output = tmp_path / "out.wav"
    with lock_track(output), pytest.raises(UsageError, match=r"out\.wav is in use by another run"), lock_track(output):
        pass
    assert not list(tmp_path.iterdir())


def test_without_any_turn_what_was_kept_stays_on_the_disk(state: TurnCache, tmp_path: Path) -> None:
    """A track of recordings only must not cost what an earlier script had spoken."""
    before = files(state)
    state.settle([], [])
    assert files(state) == before and len(TurnCache.beside(tmp_path / "out.wav").turns) == 2


@pytest.mark.parametrize("suffix", ["wav", "npy"])
@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_damaged_turn_is_told(
    state: TurnCache, caplog: pytest.LogCaptureFixture, suffix: str, damage: bytes | None
) -> None:
    first, second = state.turns
    path = state.folder / f"{first.name}.{suffix}"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert not state.intact(first) and state.intact(second)
    assert caplog.messages == ["what is kept of turn 1 is damaged: it is spoken again"]


def test_the_files_of_another_turn_are_not_taken_for_its_own(state: TurnCache) -> None:
    first, second = (state.folder / f"{turn.name}.wav" for turn in state.turns)
    first.write_bytes(second.read_bytes())
    assert not state.intact(state.turns[0])


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "turns": [{}]}', '{"schema": 1, "turns": [7]}']
)
def test_a_record_that_cannot_be_read_keeps_nothing_and_says_so(
    state: TurnCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    (state.folder / RECORD).write_text(record)
    assert not TurnCache.beside(tmp_path / "out.wav").turns
    (message,) = caplog.messages
    assert RECORD in message and message.endswith("all turns are spoken again")


def test_what_another_version_has_kept_is_left_alone(state: TurnCache, tmp_path: Path) -> None:
    (state.folder / RECORD).write_text('{"schema": 0, "turns": "of another form"}')
    assert not TurnCache.beside(tmp_path / "out.wav").turns
