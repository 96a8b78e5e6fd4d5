"""Several training processes: the device of each, and the error where one has ended."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from csm_cli.errors import DeviceMissing, PeerLost, UsageError
from csm_cli.train import trainer
from csm_cli.train.trainer import detect_lost_process, make_accelerator


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two CUDA devices as accelerate sees them. current: the selected one; launched: each process has its own."""
    state = SimpleNamespace(current=0, launched=False)

    def accelerator(mixed_precision: str, cpu: bool | None, kwargs_handlers: list[object]) -> SimpleNamespace:
        gpu = torch.device("cuda", 0 if state.launched else state.current)
        return SimpleNamespace(
            device=torch.device("cpu") if cpu else gpu, is_main_process=True, mixed_precision=mixed_precision
        )

    def set_device(chosen: torch.device) -> None:
        state.current = chosen.index

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(trainer, "Accelerator", accelerator)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return state


@pytest.mark.parametrize(
    ("name", "device_name"),
    [("auto", "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_single_process_uses_the_named_device(
    machine: SimpleNamespace, caplog: pytest.LogCaptureFixture, name: str, device_name: str
) -> None:
    assert make_accelerator(name, False, 9.0).device == torch.device(device_name)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "device_name", "warns"),
    [("auto", "cuda:0", False), ("cpu", "cpu", False), ("cuda", "cuda:0", False), ("cuda:1", "cuda:0", True)],
)
def test_launcher_assigns_devices(
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    device_name: str,
    warns: bool,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    machine.launched = True
    with caplog.at_level(logging.WARNING):
        assert make_accelerator(name, True, 9.0).device == torch.device(device_name)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warns and all("cuda:1 is ignored" in each and "cuda:0" in each for each in messages)


@pytest.mark.parametrize(("name", "failure"), [("gpu", UsageError), ("cuda:7", DeviceMissing), ("mps", DeviceMissing)])
def test_unknown_device(machine: SimpleNamespace, name: str, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        make_accelerator(name, False, 9.0)


def test_only_errors_of_lost_processes_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(problem: RuntimeError) -> None:
        with detect_lost_process(tmp_path / "state.pt", lambda: 0):
            raise problem

    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:944")
    with pytest.raises(RuntimeError, match="closed by peer"):  # a single process has no others
        fail(closed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerLost, match=r"before the first step, .* nothing was saved yet, run the same command"):
        fail(closed)
    with pytest.raises(PeerLost):
        fail(torch.distributed.DistBackendError("remote process exited or there was a network error"))
    with pytest.raises(PeerLost, match="peer_timeout"):
        fail(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 9000ms for recv operation"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
