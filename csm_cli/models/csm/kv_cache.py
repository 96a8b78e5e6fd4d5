"""KV caches, and where in them new positions stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.models.csm.config import StackConfig


class KVCache:
    """Keys, then values, of one stack: for each layer [B, 2 Hkv, C, D]; zeroed: masked values are still read.

    Layers are tensors of their own: of one tensor for all, torch.compile copies the whole at every write.
    """

    def __init__(self, config: StackConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (rows, 2 * config.kv_heads, capacity, config.head_dim)
        self.layers = [torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(config.layers)]

    def clear_row(self, row: int) -> None:
        for layer in self.layers:
            layer[row] = 0

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        for layer in self.layers:
            layer[target, :, :length] = layer[source, :, :length]


@dataclass(frozen=True)
class KVCacheView:
    """A layer's part of a cache at one place: where new keys and values go, and what is visible with them.

    new: [B, 2 Hkv, S, D], or with an `index` [B, 2 Hkv, 1, D] into its positions, [B, 2 Hkv, C, D].
    keys, values: [B, Hkv, end, D].
    """

    new: Tensor
    keys: Tensor
    values: Tensor
    index: Tensor | None = None

    def write(self, states: Tensor) -> None:
        """Takes keys and values, [B, 2 Hkv, S, D]."""
        if self.index is None:
            self.new.copy_(states)
        elif torch.compiler.is_compiling():  # a scatter would be compiled to a copy of the whole cache
            rows = torch.arange(len(states), device=states.device)
            self.new[rows, :, self.index[:, 0, 0, 0]] = states[:, :, 0]
        else:
            self.new.scatter_(2, self.index, states)


def _view(new: Tensor, visible: Tensor, index: Tensor | None = None) -> KVCacheView:
    keys, values = visible.chunk(2, 1)
    return KVCacheView(new, keys, values, index)


@dataclass(frozen=True)
class PrefillSlots:
    """The same consecutive positions, `start` to `end`, of the cache rows `first` to `last`."""

    first: int
    last: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    def positions(self, device: torch.device) -> Tensor:
        """[b * S], row after row."""
        return torch.arange(self.start, self.end, device=device).repeat(self.last - self.first)

    def mask(self, like: Tensor) -> Tensor | None:
        """[S, end] of what each position may see; None where that is everything."""
        if self.length == 1:
            return None
        return torch.ones(self.length, self.end, dtype=torch.bool, device=like.device).tril(self.start)

    def views(self, cache: KVCache) -> list[KVCacheView]:
        rows = [layer[self.first : self.last] for layer in cache.layers]
        return [_view(each[:, :, self.start : self.end], each[:, :, : self.end]) for each in rows]


@dataclass(frozen=True)
class DecodeSlots:
    """One position per row: `at` [B], in cache rows 0 to B - 1, of which the first `extent` positions are looked at."""

    at: Tensor
    extent: int

    @property
    def length(self) -> int:
        return 1

    def positions(self, device: torch.device) -> Tensor:
        """[B]"""
        return self.at

    def mask(self, like: Tensor) -> Tensor:
        """[B, 1, 1, extent] to be added to scores: nothing for what a row may see."""
        beyond = torch.arange(self.extent, device=like.device) > self.at[:, None]
        mask = torch.zeros(beyond.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(beyond, -math.inf)[:, None, None]

    def views(self, cache: KVCache) -> list[KVCacheView]:
        rows = [layer[: len(self.at)] for layer in cache.layers]
        index = self.at[:, None, None, None].expand(-1, rows[0].shape[1], 1, rows[0].shape[3])
        return [_view(each, each[:, :, : self.extent], index) for each in rows]


@dataclass(frozen=True)
class AttentionMetadata:
    """New positions of some rows, made ready for every layer of a stack: it can be used again and again.

    length: S, positions per row. rope: as `RopeTable.at` gives it. mask: what may be seen.
    """

    length: int
    rope: Tensor
    mask: Tensor | None
    views: Sequence[KVCacheView]
