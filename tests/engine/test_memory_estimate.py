"""Memory estimates for --batch-size auto."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Engine, memory_estimate
from csm_cli.engine.memory_estimate import MAX_SLOTS_CPU, MAX_SLOTS_GPU, MemoryEstimate, free_memory
from csm_cli.models.csm.model import CsmModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def estimate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, device: torch.device
) -> MemoryEstimate:
    opened = open_checkpoint(str(checkpoint))
    monkeypatch.setattr(memory_estimate, "free_memory", lambda _: free)
    return memory_estimate.estimate_memory(opened.config, opened.weights.files, device, torch.float32)


@pytest.mark.parametrize(
    ("free", "device", "slots"),
    [
        (1 << 40, CPU, MAX_SLOTS_CPU),
        (1 << 40, CUDA, MAX_SLOTS_GPU),
        (None, CPU, MAX_SLOTS_CPU),
        (0, CPU, 1),
        (0, CUDA, 1),
    ],
)
def test_slots_are_bounded_on_both_sides(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, device: torch.device, slots: int
) -> None:
    assert estimate(tiny_checkpoint, monkeypatch, free, device).slots == slots


def test_slots_are_a_power_of_two_beside_the_weights(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(path.stat().st_size for path in open_checkpoint(str(tiny_checkpoint)).weights.files)
    each = estimate(tiny_checkpoint, monkeypatch, 0, CUDA).slot_bytes
    found = estimate(tiny_checkpoint, monkeypatch, weights + round(23 * each / memory_estimate.MEMORY_SHARE), CUDA)
    assert found.slots == 16
    assert str(found) == f"{found.free / 1e9:.1f} GB free, {each / 1e6:.0f} MB per item"


def test_slot_size_is_that_of_its_caches(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_checkpoint(str(tiny_checkpoint))
    engine = Engine(CsmModel(opened.config, opened.weights, CPU, torch.float32), 2)
    caches = (engine.state.backbone_cache, engine.state.depth_cache)
    each = sum(layer.nbytes for cache in caches for layer in cache.layers) / 2
    assert estimate(tiny_checkpoint, monkeypatch, None, CPU).slot_bytes == each


def test_free_memory_of_this_machine() -> None:
    free = free_memory(CPU)
    assert free is None or free > 10_000_000
