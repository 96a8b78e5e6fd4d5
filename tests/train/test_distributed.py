"""Processes that train together: the device of each, and the word of the others where one has ended."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from csm_cli import device
from csm_cli.errors import DeviceMissing, PeerLost, UsageError
from csm_cli.train import distributed as peers
from csm_cli.train.distributed import all_reduce, make_accelerator


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two CUDA devices, as accelerate sees them: of several processes each has its own. current: the chosen one."""
    there = SimpleNamespace(current=0, launched=False)

    def made(mixed_precision: str, cpu: bool | None) -> SimpleNamespace:
        gpu = torch.device("cuda", 0 if there.launched else there.current)
        return SimpleNamespace(
            device=torch.device("cpu") if cpu else gpu, is_main_process=True, mixed_precision=mixed_precision
        )

    def choose(chosen: torch.device) -> None:
        there.current = chosen.index

    monkeypatch.setattr(device, "_present", lambda kind, index: kind != "mps" and index < 2)
    monkeypatch.setattr(peers, "Accelerator", made)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return there


@pytest.mark.parametrize(
    ("name", "got"),
    [("auto", "cuda:0"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")],
)
def test_a_process_alone_is_where_it_is_told(
    machine: SimpleNamespace, caplog: pytest.LogCaptureFixture, name: str, got: str
) -> None:
    assert make_accelerator(name, False).device == torch.device(got)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "got", "told"),
    [("auto", "cuda:0", False), ("cpu", "cpu", False), ("cuda", "cuda:0", False), ("cuda:1", "cuda:0", True)],
)
def test_a_launcher_decides_and_it_is_said(
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    got: str,
    told: bool,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    machine.launched = True
    with caplog.at_level(logging.WARNING):
        assert make_accelerator(name, True).device == torch.device(got)
    assert [record.getMessage() for record in caplog.records] == told * [
        "device cuda:1 is not heeded: the launcher decides, and gives cuda:0 here"
    ]


@pytest.mark.parametrize(("name", "failure"), [("gpu", UsageError), ("cuda:7", DeviceMissing), ("mps", DeviceMissing)])
def test_what_is_no_device_here_is_refused(machine: SimpleNamespace, name: str, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        make_accelerator(name, False)


def test_only_the_words_of_a_lost_peer_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(problem: RuntimeError) -> None:
        with all_reduce(tmp_path / "state.pt", lambda: 0):
            raise problem

    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:944")
    with pytest.raises(RuntimeError, match="closed by peer"):  # of one process there are no peers
        fail(closed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerLost, match=r"before its first step, .* nothing was saved yet, and the same command begins"):
        fail(closed)
    with pytest.raises(PeerLost):
        fail(torch.distributed.DistBackendError("remote process exited or there was a network error"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
