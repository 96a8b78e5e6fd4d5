"""Memory estimates for --batch-size auto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from csm_cli.checkpoint import open_checkpoint
from csm_cli.checkpoint.sesame import family_config
from csm_cli.engine import Engine, memory_estimate
from csm_cli.engine.memory_estimate import (
    MAX_SLOTS_CPU,
    MAX_SLOTS_GPU,
    MemoryEstimate,
    free_memory,
    memory_shortage,
    weight_bytes,
)
from csm_cli.models.csm.family import FAMILY
from csm_cli.models.csm.model import CsmModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def estimate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, device: torch.device
) -> MemoryEstimate:
    opened = open_checkpoint(str(checkpoint))
    monkeypatch.setattr(memory_estimate, "free_memory", lambda _: free)
    return memory_estimate.estimate_memory(opened.config, device, torch.float32)


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
    weights = weight_bytes(open_checkpoint(str(tiny_checkpoint)).config, torch.float32)
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


def tensors_of(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that an object holds, once for each storage."""
    if isinstance(value, torch.Tensor):
        if value.untyped_storage().data_ptr() not in seen:
            seen.add(value.untyped_storage().data_ptr())
            yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each, seen)
    elif type(value).__module__.startswith("csm_cli.models.csm") and hasattr(value, "__dict__"):
        for each in vars(value).values():
            yield from tensors_of(each, seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("int8", [False, True])
def test_weights_take_what_is_estimated(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, int8: bool
) -> None:
    opened = open_checkpoint(str(tiny_checkpoint))
    model = CsmModel(opened.config, opened.weights, CPU, dtype)
    if int8:
        monkeypatch.setattr(model, "dtype", torch.float32)
        model.quantize()
    held = sum(each.numel() * each.itemsize for each in tensors_of(model, set()) if each.numel() > 1)
    ropes = sum(
        each.numel() * each.itemsize for s in (model.backbone, model.depth) for each in tensors_of(s._rope, set())
    )
    assert held - ropes == pytest.approx(weight_bytes(opened.config, dtype, int8), rel=0.01)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("sesame/csm-1b", {"float32": 6.5, "bfloat16": 3.2, "int8": 2.2}),
        ("MisoLabs/MisoTTS", {"float32": 33.1, "bfloat16": 16.6, "int8": 9.3}),
    ],
)
def test_what_the_published_models_take(model: str, expected: dict[str, float]) -> None:
    config = family_config(next(each for each in FAMILY if each.id == model))
    found = {name: weight_bytes(config, getattr(torch, name)) for name in ("float32", "bfloat16")}
    found["int8"] = weight_bytes(config, torch.bfloat16, int8=True)
    assert {name: size / 1e9 for name, size in found.items()} == pytest.approx(expected, abs=0.1)


def test_too_little_memory_is_said_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    miso = family_config(FAMILY[1])
    monkeypatch.setattr(memory_estimate, "free_memory", lambda _: 20_000_000_000)
    assert memory_shortage(miso, CUDA, torch.bfloat16) is None
    line = memory_shortage(miso, CPU, torch.float32)
    assert line and "33.1 GB in float32" in line and "--dtype bfloat16" in line
    assert memory_estimate.estimate_memory(miso, CUDA, torch.bfloat16).slots < MAX_SLOTS_GPU
    assert memory_estimate.estimate_memory(miso, CUDA, torch.bfloat16, int8=True).slots > 8
    monkeypatch.setattr(memory_estimate, "free_memory", lambda _: 12_000_000_000)
    assert "--dtype" not in (memory_shortage(miso, CUDA, torch.bfloat16) or "--dtype")


def test_free_memory_of_this_machine() -> None:
    free = free_memory(CPU)
    assert free is None or free > 10_000_000
