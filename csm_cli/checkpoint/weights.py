"""Tensors on disk: names and shapes are known at once, values are mapped into memory when asked for."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from csm_cli.checkpoint.find import Source, require_file
from csm_cli.errors import CheckpointInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    file: Path


TensorMap = Mapping[str, StoredTensor]


class CheckpointWeights(Mapping[str, "Tensor"]):
    """Tensors by name; each access maps its tensor from disk."""

    def __init__(self, stored: TensorMap) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def files(self) -> set[Path]:
        """The files that hold them."""
        return {stored.file for stored in self._stored.values()}


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointInvalid where the file is not one JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise CheckpointInvalid(f"{path} cannot be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise CheckpointInvalid(f"{path} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise CheckpointInvalid(f"{path} is not a JSON object")
    return value


def read_weights(source: Source, path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, of the shards an index names, or of a PyTorch file.

    Raises:
        CheckpointInvalid: a damaged file, a missing shard, or a shard without a tensor that the index promises.
    """
    if path.suffix == ".json":
        return _read_index(source, path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)


def _read_index(source: Source, path: Path) -> dict[str, StoredTensor]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointInvalid(f'{path} has no "weight_map": not an index of shards')
    shards = {file: _read_safetensors(require_file(source, file)) for file in sorted(set(places.values()))}
    lost = [name for name, file in places.items() if name not in shards[file]]
    if lost:
        raise CheckpointInvalid(f"{places[lost[0]]} has no tensor {lost[0]}, which {path} says it holds")
    return {name: shards[file][name] for name, file in places.items()}


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
    except (SafetensorError, OSError) as problem:
        raise CheckpointInvalid(f"{path} is damaged or not a safetensors file ({problem}); get it again") from problem
    return {
        name: StoredTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name), path)
        for name in names
    }


def _read_pytorch(path: Path) -> dict[str, StoredTensor]:
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as problem:
        reason = str(problem).splitlines()[0]
        raise CheckpointInvalid(
            f"{path} is damaged or not a PyTorch weights file ({reason}); get it again"
        ) from problem
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointInvalid(f"{path} is not a mapping of names to tensors")
    return {name: StoredTensor(tuple(tensor.shape), partial(_itself, tensor), path) for name, tensor in tensors.items()}


def _itself(tensor: Tensor) -> Tensor:
    return tensor
