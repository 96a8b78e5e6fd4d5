"""Conversations as codes on disk, written shard by shard and read from where they lie.

A store is a folder: `NNNNN.safetensors` with the codes of a shard's examples end to end, `NNNNN.jsonl` with one line of
text each, and `index.json`, which is written last: a folder without it is not finished.
"""

from __future__ import annotations

import json
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

VERSION = 1
INDEX = "index.json"
_OPEN = 256  # shards kept mapped; the kernel keeps what of them is in memory


@dataclass(frozen=True, eq=False)
class CodedTurn:
    """What one speaker said. codes: int64 [T, K]; learned: False for a turn that is heard only, as context."""

    speaker: int
    text: str
    codes: Tensor
    learned: bool = True


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation that fits the model's window. held_out: kept from training, for evaluation."""

    id: str
    turns: tuple[CodedTurn, ...]
    held_out: bool = False

    @property
    def frames(self) -> int:
        return sum(len(turn.codes) for turn in self.turns)


@dataclass(frozen=True)
class CodecIdentity:
    """What made the codes. codec: `codec_identity` of it; frame_rate: frames per second."""

    codec: str
    codebooks: int
    frame_rate: float


@dataclass(frozen=True)
class StoreWriter:
    """Writes a store. Every shard appears whole or not at all, in any order and from any process; `finish` ends it."""

    folder: Path
    coding: CodecIdentity

    def write(self, number: int, examples: Sequence[Example], note: Mapping[str, Any] | None = None) -> None:
        """Puts a shard in its place. note: kept with it, see `note`.

        Raises:
            ValueError: codes that are not [T, codebooks], or that 16 bits do not hold.
            OutputRefused, OutputFailed: it could not be written.
        """
        lines = [_line(example) for example in examples]
        tensors = {
            "codes": self._codes(examples),
            "starts": _starts([example.frames for example in examples]),
            "lines": _starts([len(line) for line in lines]),
            "held_out": torch.tensor([example.held_out for example in examples], dtype=torch.bool),
        }
        codes, text = _files(self.folder, number)
        for stale in (self.folder / INDEX, codes):  # neither may stand beside a text that is not its own
            stale.unlink(missing_ok=True)
        write_atomically(text, b"".join(lines))
        write_atomically(codes, save(tensors, {"note": json.dumps(note or {})}))

    def note(self, number: int) -> dict[str, Any] | None:
        """What was noted with a shard; None where it is not there, damaged, or of another coding."""
        try:
            shard = _Shard(self.folder, number, self.coding.codebooks)
        except InputError:
            return None
        return shard.note

    def finish(self, count: int, about: Mapping[str, Any] | None = None) -> None:
        """Makes a store of the first `count` shards and removes others; `about` goes into the index as it is.

        Raises:
            InputError: one of them is missing or damaged.
            OutputFailed: the index could not be written.
        """
        shards = [_Shard(self.folder, number, self.coding.codebooks).counts for number in range(count)]
        index = {"version": VERSION, **asdict(self.coding), "shards": shards, **(about or {})}
        write_atomically(self.folder / INDEX, json.dumps(index, ensure_ascii=False).encode())
        for path in self.folder.glob("[0-9]*.*"):
            if path.suffix in (".safetensors", ".jsonl") and path.stem.isdigit() and int(path.stem) >= count:
                path.unlink()

    def discard(self, count: int) -> None:
        """Removes the first `count` shards, where they are not part of a finished store."""
        if not (self.folder / INDEX).exists():
            for number in range(count):
                for path in _files(self.folder, number):
                    path.unlink(missing_ok=True)

    def _codes(self, examples: Sequence[Example]) -> Tensor:
        turns = [turn.codes for example in examples for turn in example.turns]
        books = self.coding.codebooks
        wrong = next((codes for codes in turns if codes.ndim != 2 or codes.shape[1] != books), None)
        if wrong is not None:
            raise ValueError(f"expected codes [T, {books}], got {list(wrong.shape)}")
        joined = torch.cat([torch.empty(0, books, dtype=torch.int64), *turns])
        if len(joined) and not 0 <= int(joined.min()) <= int(joined.max()) < 2**15:
            raise ValueError("codes are not within 0 to 32767")
        return joined.to(torch.int16)


class Store:
    """The examples of a finished store, read from disk one by one.

    lengths: int32 [N], frames of each example; coding: what made the codes; about: the whole index.
    Pickles as its folder's name, so that the workers of a data loader map the files themselves.
    """

    def __init__(self, folder: Path, held_out: bool) -> None:
        self._folder, self._held_out = folder, held_out
        self.about = _index(folder)
        self.coding = CodecIdentity(self.about["codec"], self.about["codebooks"], self.about["frame_rate"])
        self._shard = lru_cache(maxsize=_OPEN)(self._mapped)
        chosen = [self._rows(number) for number in range(len(self.about["shards"]))]
        self._firsts = np.cumsum([0, *(len(rows) for rows, _ in chosen)])
        self._numbers = np.concatenate([np.empty(0, np.int32), *(rows for rows, _ in chosen)])
        self.lengths: NDArray[np.int32] = np.concatenate([np.empty(0, np.int32), *(frames for _, frames in chosen)])

    @property
    def codebooks(self) -> int:
        return self.coding.codebooks

    @property
    def frame_rate(self) -> float:
        return self.coding.frame_rate

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError, or InputError where the files were damaged after the store was opened."""
        position = range(len(self))[index]
        number = bisect_right(self._firsts, position) - 1
        return self._shard(number).example(int(self._numbers[position]))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self._folder, self._held_out)

    def _mapped(self, number: int) -> _Shard:
        return _Shard(self._folder, number, self.codebooks)

    def _rows(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Which rows of a shard belong to this side of the split, and how many frames each has."""
        shard = self._shard(number)
        rows = np.flatnonzero(shard.held_out == self._held_out).astype(np.int32)
        return rows, np.diff(shard.starts)[rows].astype(np.int32)


def open_store(folder: Path, held_out: bool = False) -> Store:
    """The examples of a store that are trained on, or those held out from training.

    Raises:
        InputError: no such store, one that is not finished, damaged, or of another version.
    """
    return Store(folder, held_out)


class _Shard:
    """One shard, its small tensors read and its codes mapped."""

    def __init__(self, folder: Path, number: int, codebooks: int) -> None:
        """Raises InputError where it is missing, damaged, or has another number of codebooks."""
        self._codes, self._text = _files(folder, number)
        try:
            file: Any = safe_open(self._codes, framework="pt")
            self._file = file
            self.starts = file.get_tensor("starts").numpy()  # [N + 1], in frames
            self.lines = file.get_tensor("lines").numpy()  # [N + 1], in bytes
            self.held_out = file.get_tensor("held_out").numpy()  # [N]
            self.note: dict[str, Any] = json.loads((file.metadata() or {})["note"])
            whole = file.get_slice("codes").get_shape() == [self.starts[-1], codebooks]
            whole = whole and self._text.stat().st_size == self.lines[-1]
        except (SafetensorError, OSError, KeyError, ValueError) as problem:
            raise self._damaged(problem) from problem
        if not whole:
            raise self._damaged("its parts do not belong together")

    @property
    def counts(self) -> dict[str, int]:
        return {
            "examples": len(self.held_out),
            "held_out": int(self.held_out.sum()),
            "frames": int(self.starts[-1]),
        }

    def example(self, row: int) -> Example:
        """Raises InputError where the files are not what they were."""
        first, last = (int(bound) for bound in self.starts[row : row + 2])
        try:
            record = json.loads(self._bytes(row))
            codes = self._file.get_slice("codes")[first:last].long()
            ends = np.cumsum([turn["frames"] for turn in record["turns"]]).tolist()
            if not ends or ends[-1] != len(codes):
                raise ValueError("frames do not add up")
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as problem:
            raise self._damaged(problem) from problem
        pieces = torch.tensor_split(codes, ends[:-1])
        turns = tuple(
            CodedTurn(turn["speaker"], turn["text"], piece, turn["learned"])
            for turn, piece in zip(record["turns"], pieces, strict=True)
        )
        return Example(record["id"], turns, bool(self.held_out[row]))

    def _bytes(self, row: int) -> bytes:
        first, last = (int(bound) for bound in self.lines[row : row + 2])
        with self._text.open("rb") as file:
            file.seek(first)
            return file.read(last - first)

    def _damaged(self, problem: object) -> InputError:
        hint = "run csm data prepare again, which makes it anew"
        return InputError(f"{self._codes}: missing or damaged ({problem}); {hint}")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["version"]
    except FileNotFoundError as problem:
        hint = "run csm data prepare to the end" if folder.is_dir() else "make it with csm data prepare"
        raise InputError(f"{folder}: is no finished store of training data; {hint}") from problem
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{path}: is not the index of a store; run csm data prepare again") from problem
    if version != VERSION:
        raise InputError(f"{path}: is of version {version}, this program's is {VERSION}; run csm data prepare again")
    return dict(index)


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """A shard's codes and its text."""
    return folder / f"{number:05d}.safetensors", folder / f"{number:05d}.jsonl"


def _line(example: Example) -> bytes:
    turns = [
        {"speaker": turn.speaker, "text": turn.text, "frames": len(turn.codes), "learned": turn.learned}
        for turn in example.turns
    ]
    return json.dumps({"id": example.id, "turns": turns}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _starts(sizes: Sequence[int]) -> Tensor:
    """Where each of the pieces laid end to end begins, and where the last ends: int64 [N + 1]."""
    return torch.from_numpy(np.cumsum([0, *sizes]))
