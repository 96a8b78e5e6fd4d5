"""Stores: written and read back; an incomplete or damaged one is rejected."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter, open_store
from csm_cli.errors import InputError, OutputFailed

CODEC = CodecIdentity("some codec", codebooks=4, frame_rate=12.5)


def example(name: str, *frames: int, held_out: bool = False) -> Example:
    generator = torch.Generator().manual_seed(len(name) + sum(frames))
    turns = [
        CodedTurn(at % 2, f'{name} "{at}" é\n', torch.randint(2048, (count, 4), generator=generator), trained=at > 0)
        for at, count in enumerate(frames)
    ]
    return Example(name, tuple(turns), held_out)


EXAMPLES = [example("a", 3), example("b", 5, 1, 7), example("c", 2, 2, held_out=True), example("d", 40)]


def assert_same(got: Example, wanted: Example) -> None:
    assert (got.id, got.held_out, len(got.turns)) == (wanted.id, wanted.held_out, len(wanted.turns))
    for one, other in zip(got.turns, wanted.turns, strict=True):
        assert (one.speaker, one.text, one.trained) == (other.speaker, other.text, other.trained)
        assert one.codes.dtype == torch.int64 and torch.equal(one.codes, other.codes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = StoreWriter(tmp_path / "store", CODEC)
    writer.write(1, EXAMPLES[2:])
    writer.write(0, EXAMPLES[:2], {"about": "these"})
    writer.finish(2, {"model": "tiny"})
    return writer.folder


def test_examples_are_read_back_unchanged(folder: Path) -> None:
    store = open_store(folder)
    assert [len(store), store.codec.codebooks, store.codec.frame_rate, store.info["model"]] == [3, 4, 12.5, "tiny"]
    assert store.lengths.tolist() == [3, 13, 40] and store.lengths.dtype == "int32"
    for got, wanted in zip(store, [*EXAMPLES[:2], EXAMPLES[3]], strict=True):
        assert_same(got, wanted)
    assert_same(store[-1], EXAMPLES[3])


def test_held_out_examples_are_a_separate_store(folder: Path) -> None:
    store = open_store(folder, held_out=True)
    assert len(store) == 1
    assert_same(store[0], EXAMPLES[2])


def test_pickles_as_its_folder(folder: Path) -> None:
    assert_same(pickle.loads(pickle.dumps(open_store(folder, held_out=True)))[0], EXAMPLES[2])


def test_an_index_out_of_range(folder: Path) -> None:
    with pytest.raises(IndexError):
        open_store(folder)[3]


def test_a_shard_without_examples(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, CODEC)
    writer.write(0, [])
    writer.write(1, EXAMPLES)
    writer.finish(2)
    assert open_store(tmp_path)[0].id == "a"


def test_fewer_shards_than_before(folder: Path) -> None:
    StoreWriter(folder, CODEC).finish(1)
    assert len(open_store(folder)) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["00000.jsonl", "00000.safetensors", "index.json"]


def test_notes_of_shards(folder: Path) -> None:
    writer = StoreWriter(folder, CODEC)
    assert writer.note(0) == {"about": "these"} and writer.note(1) == {} and writer.note(2) is None
    assert StoreWriter(folder, replace(CODEC, codebooks=5)).note(0) is None


def test_rewritten_shard_makes_the_store_incomplete(folder: Path) -> None:
    StoreWriter(folder, CODEC).write(1, EXAMPLES[:1])
    with pytest.raises(InputError, match="is not a complete store"):
        open_store(folder)


@pytest.mark.parametrize("name", ["00001.safetensors", "00001.jsonl"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_shard_is_reported(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else (folder / f"00000{path.suffix}").read_bytes())
    with pytest.raises(InputError, match=r"00001\.safetensors: missing or damaged .* run csm data prepare again"):
        open_store(folder)
    assert StoreWriter(folder, CODEC).note(1) is None


def test_damaged_text_is_reported_when_read(folder: Path) -> None:
    path = folder / "00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"frames": 3', b'"frames": 4'))
    with pytest.raises(InputError, match="frames do not add up"):
        open_store(folder)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not the index"), ("[]", "is not the index"), ('{"version": 9}', "has version 9")],
)
def test_invalid_index(folder: Path, text: str, message: str) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_store(folder)


def test_missing_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it with csm data prepare"):
        open_store(tmp_path / "none")


@pytest.mark.parametrize("codes", [torch.zeros(3, 5).long(), torch.zeros(3).long(), torch.full((3, 4), 2**15)])
def test_invalid_codes_are_rejected(tmp_path: Path, codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        StoreWriter(tmp_path, CODEC).write(0, [Example("a", (CodedTurn(0, "Hi", codes),))])
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_finished_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputFailed(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr("csm_cli.data.store.write_atomically", full)
    with pytest.raises(OutputFailed):
        StoreWriter(folder, CODEC).write(1, EXAMPLES)
    monkeypatch.undo()
    StoreWriter(folder, CODEC).write(1, EXAMPLES)
    StoreWriter(folder, CODEC).finish(2)
    assert json.loads((folder / "index.json").read_text())["shards"][1]["examples"] == 4
