"""KV caches, and the positions of new tokens in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from csm_cli.models.csm.config import StackConfig


class KVCache:
    """Keys, then values, of one stack: for each layer [B, 2 Hkv, C, D]. Zeroed, because masked values are still read.

    One tensor per layer: if all layers shared one, torch.compile would copy the whole at every write.
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

    def swap_rows(self, first: int, second: int, length: int) -> None:
        """Exchanges the first `length` positions of two rows."""
        for layer in self.layers:
            layer[[first, second], :, :length] = layer[[second, first], :, :length]


@dataclass(frozen=True)
class KVCacheView:
    """One layer's cache at some slots: where new keys and values are written, and what is attended to.

    target: [B, 2 Hkv, S, D]; with a `slot_mapping` [B, 2 Hkv, 1, D] of positions, the whole rows [B, 2 Hkv, C, D].
    keys, values: [B, Hkv, end, D].
    """

    target: Tensor
    keys: Tensor
    values: Tensor
    slot_mapping: Tensor | None = None

    def write(self, states: Tensor) -> None:
        """Stores new keys and values, [B, 2 Hkv, S, D]."""
        if self.slot_mapping is None:
            self.target.copy_(states)
        elif torch.compiler.is_compiling():  # a scatter would be compiled to a copy of the whole cache
            rows = torch.arange(len(states), device=states.device)
            self.target[rows, :, self.slot_mapping[:, 0, 0, 0]] = states[:, :, 0]
        else:
            self.target.scatter_(2, self.slot_mapping, states)


@dataclass(frozen=True)
class PrefillSlots:
    """The same consecutive positions, `start` to `end`, of the cache rows `first_row` to `end_row`."""

    first_row: int
    end_row: int
    start: int
    end: int

    @property
    def query_len(self) -> int:
        return self.end - self.start

    def position_ids(self, device: torch.device) -> Tensor:
        """[B * S], row after row."""
        return torch.arange(self.start, self.end, device=device).repeat(self.end_row - self.first_row)

    def mask(self, like: Tensor) -> Tensor | None:
        """[S, end]: which positions each query attends to. None if all."""
        if self.query_len == 1:
            return None
        return torch.ones(self.query_len, self.end, dtype=torch.bool, device=like.device).tril(self.start)

    def views(self, cache: KVCache) -> list[KVCacheView]:
        rows = [layer[self.first_row : self.end_row] for layer in cache.layers]
        parts = ((r[:, :, self.start : self.end], *r[:, :, : self.end].chunk(2, 1)) for r in rows)
        return [KVCacheView(target, keys, values) for target, keys, values in parts]


@dataclass(frozen=True)
class DecodeSlots:
    """One position per row, in cache rows 0 to B - 1: `positions` [B]. `kv_bucket` positions are attended to."""

    positions: Tensor
    kv_bucket: int
    query_len: ClassVar[int] = 1

    def position_ids(self, device: torch.device) -> Tensor:
        """[B]"""
        return self.positions

    def mask(self, like: Tensor) -> Tensor:
        """[B, 1, 1, kv_bucket], added to the scores: 0 up to a row's position, then minus infinity."""
        future = torch.arange(self.kv_bucket, device=like.device) > self.positions[:, None]
        mask = torch.zeros(future.shape, dtype=like.dtype, device=like.device)
        return mask.masked_fill_(future, -math.inf)[:, None, None]

    def views(self, cache: KVCache) -> list[KVCacheView]:
        rows = [layer[: len(self.positions)] for layer in cache.layers]
        slot_mapping = self.positions[:, None, None, None].expand(-1, rows[0].shape[1], 1, rows[0].shape[3])
        parts = ((r, *r[:, :, : self.kv_bucket].chunk(2, 1)) for r in rows)
        return [KVCacheView(r, keys, values, slot_mapping) for r, keys, values in parts]


@dataclass(frozen=True)
class AttentionMetadata:
    """What the layers of a stack need to know about new positions; reusable for every layer and step.

    query_len: S, new positions per row. rope: as from `RopeTable.at`. mask: as from the slots. views: one per layer.
    """

    query_len: int
    rope: Tensor
    mask: Tensor | None
    views: Sequence[KVCacheView]
