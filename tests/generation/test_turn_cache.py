"""The turn cache beside a track: stored as generated, checked, and pruned."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from csm_cli.audio.io import Audio
from csm_cli.errors import OutputFailed, OutputRefused, UsageError
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.turn_cache import INDEX_FILE, JOURNAL_FILE, CachedTake, CachedTurn, TurnCache, lock_track
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.types import Conversation, Turn


def utterance(level: float) -> Utterance:
    turn = Turn(0, "Hello.")
    codes = torch.full((2, 4), round(level * 10), dtype=torch.int64)
    return Utterance(Conversation((turn,)), turn, codes, Audio(np.full(3840, level, np.float32), 24000), "eos")


def opened(output: Path) -> TurnCache:
    return TurnCache.open(output, codebooks=4, vocab=64)


def cached(number: int) -> CachedTurn:
    segment = Segment("Hällo.", 0.0, 0.16, 2)
    return CachedTurn(
        number,
        "Hällo.",
        "fingerprint",
        "history",
        "",
        7,
        None,
        "eos",
        (CachedTake(7, picked=True),),
        (("Hällo.", 2),),
        (segment,),
        30,
    )


@pytest.fixture
def cache(tmp_path: Path) -> TurnCache:
    found = opened(tmp_path / "out.wav")
    for number, level in enumerate((0.1, 0.2), 1):
        found.add(cached(number), utterance(level))
    return found


def files(cache: TurnCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_cached_turns_are_read_back(cache: TurnCache, tmp_path: Path) -> None:
    again = opened(tmp_path / "out.wav")
    assert again.folder == tmp_path / ".out.csm" and again.turns == cache.turns
    assert [replace(turn, digest="") for turn in again.turns] == [cached(1), cached(2)]
    recording = again.recording(again.turns[1])
    assert recording.codes_path and recording.chunks == (("Hällo.", 2),)
    assert np.array_equal(np.load(recording.codes_path), np.full((2, 4), 2))
    samples, rate = soundfile.read(recording.path, dtype="float32")
    assert rate == 24000 and np.array_equal(samples, np.full(3840, 0.2, np.float32))


def test_a_full_disk_names_the_output_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputFailed) as caught:
        opened(tmp_path / "out.wav").add(cached(1), utterance(0.1))
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "out.wav")) and "No space left on device" in message
    assert not list(tmp_path.iterdir())


def test_all_formats_of_a_track_share_a_cache(cache: TurnCache, tmp_path: Path) -> None:
    assert opened(tmp_path / "out.flac").turns == cache.turns and cache.turns
    assert not opened(tmp_path / "other.wav").turns and not opened(tmp_path / "out.2.wav").turns


def test_the_turns_of_another_track_are_copied_as_older_ones(cache: TurnCache, tmp_path: Path) -> None:
    other = opened(tmp_path / "b" / "other.wav")
    own = other.add(cached(1), utterance(0.5))
    (cache.folder / f"{cache.turns[0].digest}.npy").write_bytes(b"damaged")
    other.copy_from(cache)
    assert other.turns == [cache.turns[1], own] and other.is_intact(cache.turns[1])
    assert opened(tmp_path / "b" / "other.wav").turns == other.turns
    other.copy_from(cache)
    assert len(other.turns) == 2


def test_equal_audio_is_stored_once(cache: TurnCache) -> None:
    before = files(cache)
    cache.add(cached(3), utterance(0.2))
    assert files(cache) == before and len(cache.turns) == 3


def test_rejected_turns_are_removed_with_their_files(cache: TurnCache) -> None:
    last = cache.turns[1]
    cache.prune([last], rejected=cache.turns[:1])
    assert files(cache) == sorted([f"{last.digest}.npy", f"{last.digest}.wav", INDEX_FILE])


def test_unused_turns_stay_up_to_a_limit(cache: TurnCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = cache.turns
    cache.prune([last], [])
    assert cache.turns == [first, last] and len(files(cache)) == 5
    third = cache.add(cached(3), utterance(0.3))
    monkeypatch.setattr("csm_cli.generation.turn_cache.MAX_UNUSED_TURNS", 1)
    cache.prune([third], [])
    assert cache.turns == [last, third]


def test_one_run_at_a_time_uses_a_cache(tmp_path: Path) -> None:
    output = tmp_path / "out.wav"
    with lock_track(output), pytest.raises(UsageError, match=r"out\.wav is in use by another run"), lock_track(output):
        pass
    assert not list(tmp_path.iterdir())


def test_a_track_without_generated_turns_removes_nothing(cache: TurnCache, tmp_path: Path) -> None:
    """A track of recordings only must not cost what an earlier script had spoken."""
    before = files(cache)
    cache.prune([], [])
    assert files(cache) == before and len(opened(tmp_path / "out.wav").turns) == 2


@pytest.mark.parametrize("suffix", ["wav", "npy"])
@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_damaged_turn_is_detected(
    cache: TurnCache, caplog: pytest.LogCaptureFixture, suffix: str, damage: bytes | None
) -> None:
    first, second = cache.turns
    path = cache.folder / f"{first.digest}.{suffix}"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert not cache.is_intact(first) and cache.is_intact(second)
    (message,) = caplog.messages
    assert "turn 1 is damaged" in message


def test_swapped_files_are_detected(cache: TurnCache) -> None:
    first, second = (cache.folder / f"{turn.digest}.wav" for turn in cache.turns)
    first.write_bytes(second.read_bytes())
    assert not cache.is_intact(cache.turns[0])


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"schema": 3}', '{"schema": 3, "turns": [{}]}', '{"schema": 3, "turns": [7]}']
)
def test_an_unreadable_index_is_ignored_with_one_line(
    cache: TurnCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    (cache.folder / INDEX_FILE).write_text(record)
    assert not opened(tmp_path / "out.wav").turns
    (message,) = caplog.messages
    assert INDEX_FILE in message and message.endswith("all turns are generated again")


def test_the_cache_of_another_version_is_ignored_with_one_line(
    cache: TurnCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache.folder / INDEX_FILE).write_text('{"schema": 0, "turns": "of another form"}')
    assert not opened(tmp_path / "out.wav").turns
    (message,) = caplog.messages
    assert str(cache.folder) in message and "ignored" in message


def test_the_cache_folder_of_earlier_versions_is_ignored_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".old.wav.csm").mkdir()
    (tmp_path / ".old.wav.csm" / "state.json").write_text('{"schema": 1, "turns": []}')
    assert not opened(tmp_path / "old.wav").turns
    (message,) = caplog.messages
    assert ".old.wav.csm" in message and "ignored" in message


def test_a_run_appends_one_line_for_each_turn(tmp_path: Path) -> None:
    """A run of thousands of turns never writes the turns before again."""
    cache = opened(tmp_path / "out.wav")
    sizes = []
    for number in range(1, 5):
        cache.add(cached(number), utterance(number / 10))
        sizes.append((cache.folder / JOURNAL_FILE).stat().st_size)
    assert sizes[3] - sizes[2] == sizes[2] - sizes[1] and not (cache.folder / INDEX_FILE).exists()
    assert opened(tmp_path / "out.wav").turns == cache.turns
    cache.prune(cache.turns[2:], cache.turns[:2])
    assert not (cache.folder / JOURNAL_FILE).exists() and opened(tmp_path / "out.wav").turns == cache.turns


def test_turns_after_an_unfinished_line_are_generated_again(cache: TurnCache, tmp_path: Path) -> None:
    journal = cache.folder / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes()[:-9])
    again = opened(tmp_path / "out.wav")
    assert again.turns == cache.turns[:1]
    third = again.add(cached(3), utterance(0.3))
    assert opened(tmp_path / "out.wav").turns == [cache.turns[0], third]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../../../etc/pass"},
        {"number": 0},
        {"stop": "\x1b[2J"},
        {"seed": "7"},
        {"takes": [{"seed": None}]},
        {"chunks": [["a", -1]]},
        {"segments": [{"text": "a", "start": 1e999, "end": 1.0, "frames": 1}]},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("name", [INDEX_FILE, JOURNAL_FILE])
def test_what_is_no_cached_turn_is_generated_again(
    cache: TurnCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object], name: str
) -> None:
    if name == INDEX_FILE:
        cache.prune(cache.turns, [])
        record = json.loads((cache.folder / name).read_text())
        record["turns"][1] |= change
        (cache.folder / name).write_text(json.dumps(record))
    else:
        header, first, second = (cache.folder / name).read_text().splitlines()
        (cache.folder / name).write_text(f"{header}\n{first}\n{json.dumps(json.loads(second) | change)}\n")
    assert len(opened(tmp_path / "out.wav").turns) < 2
    assert "generated again" in caplog.text


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "\x00", "{}", '{"schema": 3, "turns": 5}', '{"schema": 3, "turns": [[]]}']
)
def test_a_hostile_index_does_not_stop_a_run(cache: TurnCache, tmp_path: Path, text: str) -> None:
    cache.prune(cache.turns, [])
    (cache.folder / INDEX_FILE).write_text(text)
    assert opened(tmp_path / "out.wav").turns == []
    opened(tmp_path / "out.wav").add(cached(1), utterance(0.1))
    assert len(opened(tmp_path / "out.wav").turns) == 1


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((2, 3), np.int16),
        np.zeros((2, 4)),
        np.full((2, 4), 64, np.int16),
        np.zeros((0, 4), np.int16),
        np.zeros(8),
    ],
    ids=["codebooks", "floats", "range", "empty", "dimensions"],
)
def test_codes_of_another_shape_or_range_are_not_reused(cache: TurnCache, codes: np.ndarray[Any, Any]) -> None:
    turn = cache.turns[0]
    samples, _ = soundfile.read(cache.folder / f"{turn.digest}.wav", dtype="float32")
    digest = fingerprint(codes.astype(np.int16).tobytes(), samples.tobytes(), length=16)
    for suffix in ("wav", "npy"):
        (cache.folder / f"{turn.digest}.{suffix}").rename(cache.folder / f"{digest}.{suffix}")
    np.save(cache.folder / f"{digest}.npy", codes)
    assert not cache.is_intact(replace(turn, digest=digest, chunks=()))


def test_a_cache_that_leads_elsewhere_is_not_written_through(cache: TurnCache, tmp_path: Path) -> None:
    victim = tmp_path / "mine"
    victim.write_text("mine")
    for name in (JOURNAL_FILE, INDEX_FILE):
        (cache.folder / name).unlink(missing_ok=True)
        (cache.folder / name).symlink_to(victim)
    with pytest.raises((OutputFailed, OutputRefused)):
        opened(tmp_path / "out.wav").add(cached(3), utterance(0.3))
    assert victim.read_text() == "mine"
