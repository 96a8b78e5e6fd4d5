"""KV caches, and where in them new positions stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.config import StackConfig


class KvCache:
    """Keys, then values, of every layer of one stack, [L, B, 2 Hkv, C, D]; zeroed: masked values are still read."""

    def __init__(self, config: StackConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, rows, 2 * config.kv_heads, capacity, config.head_dim)
        self.store = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def clear_row(self, row: int) -> None:
        self.store[:, row] = 0

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        self.store[:, target, :, :length] = self.store[:, source, :, :length]


@dataclass(frozen=True)
class View:
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
        else:
            self.new.scatter_(2, self.index, states)


def _views(new: Tensor, visible: Tensor, index: Tensor | None = None) -> list[View]:
    """Of every layer; taken of all at once, since slicing costs as much as a kernel."""
    keys, values = visible.chunk(2, 2)
    layers = zip(new.unbind(), keys.unbind(), values.unbind(), strict=True)
    return [View(*each, index) for each in layers]


@dataclass(frozen=True)
class Span:
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

    def views(self, cache: KvCache) -> list[View]:
        rows = cache.store[:, self.first : self.last]
        return _views(rows[:, :, :, self.start : self.end], rows[:, :, :, : self.end])


@dataclass(frozen=True)
class Scatter:
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
        return torch.where(beyond, -math.inf, 0.0).to(like.dtype)[:, None, None]

    def views(self, cache: KvCache) -> list[View]:
        rows = cache.store[:, : len(self.at)]
        index = self.at[:, None, None, None].expand(-1, rows.shape[2], 1, rows.shape[4])
        return _views(rows, rows[:, :, :, : self.extent], index)


@dataclass(frozen=True)
class Place:
    """New positions of some rows, made ready for every layer of a stack: it can be used again and again.

    length: S, positions per row. rope: as `RopeTable.at` gives it. mask: what may be seen.
    """

    length: int
    rope: Tensor
    mask: Tensor | None
    views: Sequence[View]
