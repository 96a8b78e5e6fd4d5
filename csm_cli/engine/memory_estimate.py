"""How many conversations fit a device's memory at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from csm_cli.engine.decode_state import kv_capacity
from csm_cli.models.csm.config import ModelConfig, StackConfig

MOST_ON_CPU, MOST_ON_GPU = 8, 64  # beyond these a frame takes longer by as much as it gives more
SHARE = 0.6  # of what is free beside the weights; activations, codecs and other programs get the rest


@dataclass(frozen=True)
class MemoryEstimate:
    """slots: conversations at once. slot_bytes: the KV caches of one. free: bytes, None where nobody can tell."""

    slots: int
    slot_bytes: int
    free: int | None

    def __str__(self) -> str:
        free = "" if self.free is None else f"{self.free / 1e9:.1f} GB free, "
        return f"{free}{self.slot_bytes / 1e6:.0f} MB an item"


def estimate_memory(
    config: ModelConfig, weights: Iterable[Path], device: torch.device, dtype: torch.dtype
) -> MemoryEstimate:
    """Slots beside the weights, which are not loaded yet: a power of two, since batches are padded to one."""
    slot_bytes = _kv_numbers(config.backbone, kv_capacity(config.backbone.positions)) + _kv_numbers(
        config.depth, config.codebooks
    )
    slot_bytes *= dtype.itemsize
    free = free_memory(device)
    most = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
    if free is not None:
        left = SHARE * (free - sum(path.stat().st_size for path in weights))
        most = min(most, int(max(left, 0) // slot_bytes))
    return MemoryEstimate(1 << max(0, most.bit_length() - 1), slot_bytes, free)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; on a CPU what Linux says is available, within a container's bound."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return min(int(found[1]) * 1024, _container())
    return None


def _container() -> int:
    """What a control group leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return int(limit) - int(used) if limit != "max" else 1 << 62
    except (OSError, ValueError):
        return 1 << 62


def _kv_numbers(stack: StackConfig, positions: int) -> int:
    """Keys and values of one row."""
    return 2 * stack.layers * stack.kv_heads * stack.head_dim * positions
