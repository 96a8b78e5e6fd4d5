"""What a model takes of a device's memory, and how many conversations fit beside it at once."""

from __future__ import annotations

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


def weight_bytes(config: ModelConfig, dtype: torch.dtype, int8: bool = False) -> int:
    """Bytes of a loaded `CsmModel`. int8: after quantization; while it loads, it takes what it takes without."""
    linear = scales = 0
    for stack in (config.backbone, config.depth):
        queries, keys = stack.heads * stack.head_dim, stack.kv_heads * stack.head_dim
        outputs = queries + 2 * keys + 2 * stack.intermediate  # of projections from the hidden size
        linear += stack.layers * stack.hidden * (outputs + queries + stack.intermediate)
        scales += stack.layers * (outputs + 2 * stack.hidden)
    hidden, depth_hidden = config.backbone.hidden, config.depth.hidden
    tables = (config.text_vocab + config.codebooks * config.vocab) * hidden
    tables += (config.codebooks - 1) * config.vocab * depth_hidden + depth_hidden * hidden
    heads = config.codebook_size * (hidden + (config.codebooks - 1) * depth_hidden)
    return (tables + heads) * dtype.itemsize + (linear + scales * 4 if int8 else linear * dtype.itemsize)


def memory_shortage(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """One line that says what to do where a device has less free memory than loading the model takes."""
    free, needed = free_memory(device), weight_bytes(config, dtype)
    if free is None or needed <= free:
        return None
    name = str(dtype).removeprefix("torch.")
    half = weight_bytes(config, torch.bfloat16)
    hint = f"--dtype bfloat16 takes {half / 1e9:.1f} GB" if half < needed else "choose a device with more memory"
    return f"the model takes {needed / 1e9:.1f} GB in {name}, and {device} has {free / 1e9:.1f} GB free; {hint}"


def estimate_memory(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, int8: bool = False, sharing: int = 1
) -> MemoryEstimate:
    """Slots beside the model, which is not loaded yet: a power of two, since batches are padded to one.

    sharing: processes that load the model on this device, each of which gets an equal share.
    """
    caches = ((config.backbone, kv_capacity(config.backbone.max_seq_len)), (config.depth, config.codebooks))
    per_position = dtype.itemsize * 2  # a key and a value
    slot_bytes = sum(per_position * s.layers * s.kv_heads * s.head_dim * positions for s, positions in caches)
    free = free_memory(device)
    slots = MAX_SLOTS_GPU if device.type == "cuda" else MAX_SLOTS_CPU
    if free is not None:
        available = MEMORY_SHARE * (free / sharing - weight_bytes(config, dtype, int8))
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
