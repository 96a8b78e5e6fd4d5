"""Contention: other programs taking the processor from the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.run import Result
from helpers.tiny import Shape, greedy, ours, random_csm, text_rows

from csm_cli.engine import Engine, Request, decode_loop
from csm_cli.engine.scheduler import ContentionMonitor

Csm = Callable[..., Result]


def contention_after(*steps: tuple[float, float]) -> bool:
    """Whether steps of these wall and CPU seconds count as contention."""
    monitor = ContentionMonitor()
    for seconds, cpu_seconds in steps:
        monitor.add(seconds, cpu_seconds)
    return monitor.detected


IDLE, SHARED, STALLED = (0.0030, 0.0030), (0.0072, 0.0045), (0.2, 0.02)


@pytest.mark.parametrize(
    ("taken", "detected"),
    [
        ([], False),
        ([IDLE] * 23, False),
        ([IDLE] * 22 + [SHARED], False),
        ([(5.0, 0.01)] + [IDLE] * 22, False),  # a disk, or a stop at the terminal
        ([SHARED] * 9, False),
        ([SHARED] * 23, True),
        ([IDLE] * 188 + [STALLED] * 6, True),
        ([(0.0, 0.0)] * 23, False),  # a clock that is too coarse
    ],
)
def test_lost_cpu_share_is_detected(taken: list[tuple[float, float]], detected: bool) -> None:
    assert contention_after(*taken) is detected


def test_only_steps_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 0.0, "mine": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(time, "thread_time", lambda: clock["mine"])
    engine = Engine(ours(random_csm(Shape()))[0])
    step, waiting = engine.step, [Request(text_rows(torch.arange(9), 8), greedy(20))]

    def busy(meanwhile: Callable[[], None]) -> object:
        clock["wall"] += 1.0
        clock["mine"] += share
        return step(meanwhile)

    monkeypatch.setattr(engine, "step", busy)
    share = 0.99
    for _ in decode_loop(engine, lambda: waiting.pop() if waiting else None):
        clock["wall"] += 100.0  # files, verification, a sound device
    assert not engine.contention.detected
    share, waiting = 0.5, [Request(text_rows(torch.arange(9), 8), greedy(20))]
    list(decode_loop(engine, lambda: waiting.pop() if waiting else None))
    assert engine.contention.detected


@pytest.fixture
def crowded(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> Csm:
    """`csm` on a machine that others keep busy, with two threads."""
    monkeypatch.setattr(ContentionMonitor, "detected", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return csm


def test_hint_is_printed_once_and_only_where_it_helps(
    crowded: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines.txt").write_text("Hi.\nHo.\n")
    given = ("--model", tiny_checkpoint, "--max-duration", "0.4")
    say = ("say", "Hi.", "-o", tmp_path / "a.wav", *given)
    hint = "OMP_NUM_THREADS=1 csm"
    assert crowded(*say).err.count(hint) == 1
    assert crowded("batch", tmp_path / "lines.txt", "-o", tmp_path / "{id}.wav", *given).err.count(hint) == 1
    result = crowded(*say, "--json")
    assert result.json["status"] == "ok" and hint in result.err
    assert hint not in crowded(*say, "-q").err
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert hint not in crowded(*say).err
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hint not in crowded(*say).err
