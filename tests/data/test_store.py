"""Stores: what is written is read back, in pieces, and nothing half-made passes for a store."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter, open_store
from csm_cli.errors import InputError, OutputFailed

CODING = CodecIdentity("some codec", codebooks=4, frame_rate=12.5)


def example(name: str, *frames: int, held_out: bool = False) -> Example:
    generator = torch.Generator().manual_seed(len(name) + sum(frames))
    turns = [
        CodedTurn(at % 2, f'{name} "{at}" é\n', torch.randint(2048, (count, 4), generator=generator), learned=at > 0)
        for at, count in enumerate(frames)
    ]
    return Example(name, tuple(turns), held_out)


EXAMPLES = [example("a", 3), example("b", 5, 1, 7), example("c", 2, 2, held_out=True), example("d", 40)]


def assert_same(got: Example, wanted: Example) -> None:
    assert (got.id, got.held_out, len(got.turns)) == (wanted.id, wanted.held_out, len(wanted.turns))
    for one, other in zip(got.turns, wanted.turns, strict=True):
        assert (one.speaker, one.text, one.learned) == (other.speaker, other.text, other.learned)
        assert one.codes.dtype == torch.int64 and torch.equal(one.codes, other.codes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = StoreWriter(tmp_path / "store", CODING)
    writer.write(1, EXAMPLES[2:])
    writer.write(0, EXAMPLES[:2], {"about": "these"})
    writer.finish(2, {"model": "tiny"})
    return writer.folder


def test_examples_come_back_as_they_were(folder: Path) -> None:
    store = open_store(folder)
    assert [len(store), store.codebooks, store.frame_rate, store.about["model"]] == [3, 4, 12.5, "tiny"]
    assert store.lengths.tolist() == [3, 13, 40] and store.lengths.dtype == "int32"
    for got, wanted in zip(store, [*EXAMPLES[:2], EXAMPLES[3]], strict=True):
        assert_same(got, wanted)
    assert_same(store[-1], EXAMPLES[3])


def test_what_is_held_out_is_a_store_of_its_own(folder: Path) -> None:
    store = open_store(folder, held_out=True)
    assert len(store) == 1
    assert_same(store[0], EXAMPLES[2])


def test_it_is_pickled_by_name(folder: Path) -> None:
    assert_same(pickle.loads(pickle.dumps(open_store(folder, held_out=True)))[0], EXAMPLES[2])


def test_an_index_out_of_range(folder: Path) -> None:
    with pytest.raises(IndexError):
        open_store(folder)[3]


def test_a_shard_without_examples(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, CODING)
    writer.write(0, [])
    writer.write(1, EXAMPLES)
    writer.finish(2)
    assert open_store(tmp_path)[0].id == "a"


def test_fewer_shards_than_before(folder: Path) -> None:
    StoreWriter(folder, CODING).finish(1)
    assert len(open_store(folder)) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["00000.jsonl", "00000.safetensors", "index.json"]


def test_notes_tell_which_shards_are_done(folder: Path) -> None:
    writer = StoreWriter(folder, CODING)
    assert writer.note(0) == {"about": "these"} and writer.note(1) == {} and writer.note(2) is None
    assert StoreWriter(folder, replace(CODING, codebooks=5)).note(0) is None


def test_a_shard_written_anew_unmakes_the_store_until_it_is_finished(folder: Path) -> None:
    StoreWriter(folder, CODING).write(1, EXAMPLES[:1])
    with pytest.raises(InputError, match="is no finished store"):
        open_store(folder)


@pytest.mark.parametrize("name", ["00001.safetensors", "00001.jsonl"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_shard_is_told(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else (folder / f"00000{path.suffix}").read_bytes())
    with pytest.raises(InputError, match=r"00001\.safetensors: missing or damaged .* run csm data prepare again"):
        open_store(folder)
    assert StoreWriter(folder, CODING).note(1) is None


def test_text_damaged_within_is_told_when_read(folder: Path) -> None:
    path = folder / "00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"frames": 3', b'"frames": 4'))
    with pytest.raises(InputError, match="frames do not add up"):
        open_store(folder)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not the index"), ("[]", "is not the index"), ('{"version": 9}', "is of version 9")],
)
def test_an_index_of_another_kind(folder: Path, text: str, message: str) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_store(folder)


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it with csm data prepare"):
        open_store(tmp_path / "none")


@pytest.mark.parametrize("codes", [torch.zeros(3, 5).long(), torch.zeros(3).long(), torch.full((3, 4), 2**15)])
def test_codes_that_do_not_fit_are_refused(tmp_path: Path, codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        StoreWriter(tmp_path, CODING).write(0, [Example("a", (CodedTurn(0, "Hi", codes),))])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputFailed(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr("csm_cli.data.store.write_atomically", full)
    with pytest.raises(OutputFailed):
        StoreWriter(folder, CODING).write(1, EXAMPLES)
    monkeypatch.undo()
    StoreWriter(folder, CODING).write(1, EXAMPLES)
    StoreWriter(folder, CODING).finish(2)
    assert json.loads((folder / "index.json").read_text())["shards"][1]["examples"] == 4
