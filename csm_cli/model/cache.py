"""KV caches, and where in them new positions stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.config import StackConfig


class KvCache:
    """Keys and values of every layer of one stack, [L, B, Hkv, C, D]; zeroed, since masked values are still read."""

    def __init__(self, config: StackConfig, rows: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def clear_row(self, row: int) -> None:
        for store in (self.keys, self.values):
            store[:, row] = 0

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one row over another."""
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]


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

    def mask(self, device: torch.device) -> Tensor | None:
        """[S, end] of what each position may see; None where that is everything."""
        if self.length == 1:
            return None
        return torch.ones(self.length, self.end, dtype=torch.bool, device=device).tril(self.start)

    def views(self, store: Tensor) -> list[View]:
        """A view for each layer of [L, B, Hkv, C, D]; taken of all at once, since slicing costs as much as a kernel."""
        rows = store[:, self.first : self.last]
        new = rows[:, :, :, self.start : self.end].unbind()
        visible = rows[:, :, :, : self.end].unbind()
        return [View(*each) for each in zip(new, visible, strict=True)]


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

    def mask(self, device: torch.device) -> Tensor:
        """[B, 1, 1, extent] of what each row may see."""
        return (torch.arange(self.extent, device=device) <= self.at[:, None])[:, None, None]

    def views(self, store: Tensor) -> list[View]:
        rows = store[:, : len(self.at)]
        index = self.at[:, None, None, None].expand(-1, store.shape[2], 1, store.shape[4])
        visible = rows[:, :, :, : self.extent].unbind()
        return [View(*each, index) for each in zip(rows.unbind(), visible, strict=True)]


@dataclass(frozen=True)
class View:
    """A layer's keys or values at one place: where new ones go, and what is visible with them, [B, Hkv, end, D].

    new: [B, Hkv, S, D], or with an `index` [B, Hkv, 1, D] into its positions, [B, Hkv, C, D].
    """

    new: Tensor
    visible: Tensor
    index: Tensor | None = None

    def write(self, states: Tensor) -> Tensor:
        """Writes [B, Hkv, S, D]; returns what is visible."""
        if self.index is None:
            self.new.copy_(states)
        else:
            self.new.scatter_(2, self.index, states)
        return self.visible


@dataclass(frozen=True)
class Place:
    """New positions of some rows, made ready for every layer of a stack: it can be used again and again.

    length: S, positions per row. rope: cos and signed sin, [B * S, 1, 2, D / 2]. mask: what may be seen.
    """

    length: int
    rope: tuple[Tensor, Tensor]
    mask: Tensor | None
    keys: Sequence[View]
    values: Sequence[View]
