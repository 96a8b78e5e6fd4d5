"""Conversations as codes on disk: written shard by shard, read back through memory maps.

A store is a folder: `NNNNN.safetensors` with the codes of a shard's examples end to end, `NNNNN.jsonl` with a line of
text for each, and `index.json`, which is written last: a folder without it is incomplete.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from csm_cli.errors import InputError
from csm_cli.storage.files import write_atomically
from csm_cli.storage.folders import claim_folder
from csm_cli.storage.untrusted import parse_json, read_json

VERSION = 2
INDEX = "index.json"
_OPEN_SHARDS = 256
_MAX_INDEX_BYTES = 1 << 30
_OWN_NAMES = re.compile(r"[0-9]{5}\.(safetensors|jsonl)|(index|report)\.json|dropped\.jsonl|durations\.png")


@dataclass(frozen=True, eq=False)
class CodedTurn:
    """One speaker's turn. codes: int64 [T, K]; trained: False for a turn that is context only."""

    speaker: int
    text: str
    codes: Tensor
    trained: bool = True


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation that fits the model's context. held_out: for evaluation, not for training."""

    id: str
    turns: tuple[CodedTurn, ...]
    held_out: bool = False

    @property
    def frames(self) -> int:
        return sum(len(turn.codes) for turn in self.turns)


@dataclass(frozen=True)
class CodecIdentity:
    """The codec that made codes. digest: `codec_digest` of it; frame_rate: frames per second."""

    digest: str
    codebooks: int
    frame_rate: float


@dataclass(frozen=True)
class StoreWriter:
    """Writes a store. Each shard appears whole or not at all, in any order, from any process; `finish` completes it."""

    folder: Path
    codec: CodecIdentity

    def claim(self) -> None:
        """Marks the folder as csm's. Raises OutputRefused where it holds files that csm would replace."""
        claim_folder(self.folder, "training data", _OWN_NAMES)

    def write(self, number: int, examples: Sequence[Example], note: Mapping[str, Any] | None = None) -> None:
        """Writes a shard. note: saved with it, see `note`.

        Raises:
            ValueError: codes that are not [T, codebooks], or beyond 16 bits.
            OutputRefused, OutputFailed: it could not be written.
        """
        lines = [_text_line(example) for example in examples]
        tensors = {
            "codes": self._join_codes(examples),
            "frame_offsets": _offsets([example.frames for example in examples]),
            "line_offsets": _offsets([len(line) for line in lines]),
            "held_out": torch.tensor([example.held_out for example in examples], dtype=torch.bool),
        }
        codes, text = _shard_files(self.folder, number)
        for stale in (self.folder / INDEX, codes):  # neither may remain beside the text of another shard
            stale.unlink(missing_ok=True)
        write_atomically(text, b"".join(lines))
        write_atomically(codes, save(tensors, {"note": json.dumps(note or {})}))

    def _join_codes(self, examples: Sequence[Example]) -> Tensor:
        turns = [turn.codes for example in examples for turn in example.turns]
        books = self.codec.codebooks
        wrong = next((codes for codes in turns if codes.ndim != 2 or codes.shape[1] != books), None)
        if wrong is not None:
            raise ValueError(f"expected codes [T, {books}], got {list(wrong.shape)}")
        joined = torch.cat([torch.empty(0, books, dtype=torch.int64), *turns])
        if len(joined) and not 0 <= int(joined.min()) <= int(joined.max()) < 2**15:
            raise ValueError("codes are not within 0 to 32767")
        return joined.to(torch.int16)

    def note(self, number: int) -> dict[str, Any] | None:
        """The note of a shard; None where the shard is missing, damaged, or of another number of codebooks."""
        try:
            shard = _Shard(self.folder, number, self.codec.codebooks)
        except InputError:
            return None
        return shard.note

    def finish(self, count: int, info: Mapping[str, Any] | None = None) -> None:
        """Completes a store of the first `count` shards and removes others; `info` is added to the index.

        Raises:
            InputError: one of them is missing or damaged.
            OutputFailed: the index could not be written.
        """
        shards = [_Shard(self.folder, number, self.codec.codebooks).counts for number in range(count)]
        index = {"version": VERSION, "codec": asdict(self.codec), "shards": shards, **(info or {})}
        write_atomically(self.folder / INDEX, json.dumps(index, ensure_ascii=False).encode())
        while self.note(count) is not None:  # of an earlier run, which made more
            for path in _shard_files(self.folder, count):
                path.unlink(missing_ok=True)
            count += 1

    def discard(self, count: int) -> None:
        """Removes the first `count` shards unless they are part of a complete store."""
        if not (self.folder / INDEX).exists():
            for number in range(count):
                for path in _shard_files(self.folder, number):
                    path.unlink(missing_ok=True)


class Store:
    """The examples of a complete store, read from disk one by one.

    lengths: int32 [N], frames of each example; codec: that made the codes; info: the whole index.
    Pickles as its folder's name, so that the workers of a data loader map the files themselves.
    """

    def __init__(self, folder: Path, held_out: bool) -> None:
        self._folder, self._held_out = folder, held_out
        self.info = _read_index(folder)
        self.codec = CodecIdentity(**self.info["codec"])
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)
        numbers, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for number in range(len(self.info["shards"])):
            shard = self._shard(number)
            numbers.append(np.flatnonzero(shard.held_out == held_out).astype(np.int32))
            lengths.append(np.diff(shard.frame_offsets)[numbers[-1]].astype(np.int32))
        self._shard_offsets = np.cumsum([len(each) for each in numbers])
        self._numbers = np.concatenate(numbers)  # of each example in its shard
        self.lengths: NDArray[np.int32] = np.concatenate(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError, or InputError where the files were damaged after the store was opened."""
        index = range(len(self))[index]
        shard = self._shard(bisect_right(self._shard_offsets, index) - 1)
        return shard.example(int(self._numbers[index]))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self._folder, self._held_out)

    def _open_shard(self, number: int) -> _Shard:
        return _Shard(self._folder, number, self.codec.codebooks)


def open_store(folder: Path, held_out: bool = False) -> Store:
    """The training examples of a store, or its held-out examples.

    Raises:
        InputError: no such store, one that is incomplete, damaged, or of another version.
    """
    return Store(folder, held_out)


class _Shard:
    """One shard: its small tensors are read, its codes mapped."""

    def __init__(self, folder: Path, number: int, codebooks: int) -> None:
        """Raises InputError where it is missing, damaged, or has another number of codebooks."""
        self._codes, self._text = _shard_files(folder, number)
        try:
            file: Any = safe_open(self._codes, framework="pt")
            self._file = file
            self.frame_offsets = file.get_tensor("frame_offsets").numpy()  # [N + 1]
            self.line_offsets = file.get_tensor("line_offsets").numpy()  # [N + 1], in bytes
            self.held_out = file.get_tensor("held_out").numpy()  # [N]
            self.note: dict[str, Any] = parse_json((file.metadata() or {})["note"])
            complete = file.get_slice("codes").get_shape() == [self.frame_offsets[-1], codebooks]
            complete = complete and self._text.stat().st_size == self.line_offsets[-1]
        except (SafetensorError, OSError, KeyError, ValueError) as problem:
            raise self._damaged(problem) from problem
        if not complete:
            raise self._damaged("codes and text do not match")

    @property
    def counts(self) -> dict[str, int]:
        return {
            "examples": len(self.held_out),
            "held_out": int(self.held_out.sum()),
            "frames": int(self.frame_offsets[-1]),
        }

    def example(self, index: int) -> Example:
        """Raises InputError where the files have changed."""
        first, last = (int(bound) for bound in self.frame_offsets[index : index + 2])
        start, end = (int(bound) for bound in self.line_offsets[index : index + 2])
        try:
            with self._text.open("rb") as file:
                file.seek(start)
                record = parse_json(file.read(end - start).decode("utf-8", "surrogatepass"))
            codes = self._file.get_slice("codes")[first:last].long()
            ends = np.cumsum([turn["frames"] for turn in record["turns"]]).tolist()
            if not ends or ends[-1] != len(codes):
                raise ValueError("frames do not add up")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as problem:
            raise self._damaged(problem) from problem
        turns = tuple(
            CodedTurn(turn["speaker"], turn["text"], turn_codes, turn["trained"])
            for turn, turn_codes in zip(record["turns"], torch.tensor_split(codes, ends[:-1]), strict=True)
        )
        return Example(record["id"], turns, bool(self.held_out[index]))

    def _damaged(self, problem: object) -> InputError:
        return InputError(f"{self._codes}: missing or damaged ({problem}); run csm data prepare again")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = read_json(path, _MAX_INDEX_BYTES)
        version = index["version"]
    except FileNotFoundError as problem:
        hint = "run csm data prepare to the end" if folder.is_dir() else "make it with csm data prepare"
        raise InputError(f"{folder}: is not a complete store of training data; {hint}") from problem
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{path}: is not the index of a store; run csm data prepare again") from problem
    if version != VERSION:
        raise InputError(f"{path}: has version {version}, expected {VERSION}; run csm data prepare again")
    return dict(index)


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Codes and text."""
    return folder / f"{number:05d}.safetensors", folder / f"{number:05d}.jsonl"


def _text_line(example: Example) -> bytes:
    turns = [
        {"speaker": turn.speaker, "text": turn.text, "frames": len(turn.codes), "trained": turn.trained}
        for turn in example.turns
    ]
    return json.dumps({"id": example.id, "turns": turns}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _offsets(sizes: Sequence[int]) -> Tensor:
    """Start of each part laid end to end, and the end of the last: int64 [N + 1]."""
    return torch.from_numpy(np.cumsum([0, *sizes]))
