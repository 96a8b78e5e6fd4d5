"""How many conversations fit into a device's memory at once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from csm_cli.engine.decode_step import kv_capacity
from csm_cli.models.csm.config import ModelConfig

MAX_SLOTS_CPU, MAX_SLOTS_GPU = 8, 64  # more rows slow a step down by as much as they add
MEMORY_SHARE = 0.6  # of the free memory beside the weights; the rest is for activations, codecs and other programs


@dataclass(frozen=True)
class MemoryEstimate:
    """slots: conversations at once. slot_bytes: the KV caches of one. free: bytes, None if unknown."""

    slots: int
    slot_bytes: int
    free: int | None

    def __str__(self) -> str:
        free = "" if self.free is None else f"{self.free / 1e9:.1f} GB free, "
        return f"{free}{self.slot_bytes / 1e6:.0f} MB per item"


def estimate_memory(
    config: ModelConfig, weights: Iterable[Path], device: torch.device, dtype: torch.dtype
) -> MemoryEstimate:
    """Slots beside the weights, which are not loaded yet: a power of two, since batches are padded to one."""
    caches = ((config.backbone, kv_capacity(config.backbone.max_seq_len)), (config.depth, config.codebooks))
    per_position = dtype.itemsize * 2  # a key and a value
    slot_bytes = sum(per_position * s.layers * s.kv_heads * s.head_dim * positions for s, positions in caches)
    free = free_memory(device)
    slots = MAX_SLOTS_GPU if device.type == "cuda" else MAX_SLOTS_CPU
    if free is not None:
        available = MEMORY_SHARE * (free - sum(path.stat().st_size for path in weights))
        slots = min(slots, int(max(available, 0) // slot_bytes))
    return MemoryEstimate(1 << max(0, slots.bit_length() - 1), slot_bytes, free)


def free_memory(device: torch.device) -> int | None:
    """Available bytes of a device; on a CPU Linux's MemAvailable, within the control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with suppress(OSError, IndexError):
        free.append(int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024)
        with suppress(OSError, ValueError):  # no control group, or a limit of "max"
            limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
            free.append(limit - used)
    return min(free, default=None)
