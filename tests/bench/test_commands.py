"""`csm bench start`, `batch-overhead` and `workers`: their figures, and failures of the measured command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

from csm_cli.bench import commands
from csm_cli.errors import CsmError

Csm = Callable[..., Result]


def test_batch_overhead_reports_time_and_memory(csm: Csm, tmp_path: Path) -> None:
    figures = csm("bench", "batch-overhead", "--count", 50, "--folder", tmp_path, "--json").json
    assert figures["items"] == 50 and figures["cpu_ms_per_item"] > 0 and figures["peak_mb"] > 100
    assert figures["added_bytes_per_item"] >= 0 and figures["peak_mb_10_items"] <= figures["peak_mb"]
    assert not list(tmp_path.iterdir())


def test_simulated_workers_share_the_lines_of_a_batch(csm: Csm, tmp_path: Path) -> None:
    sizes = "--lines", 400, "--batch-size", 4, "--folder", tmp_path
    one, many = (csm("bench", "workers", "--workers", count, *sizes, "--json").json for count in (1, 8))
    assert one["share_of_linear"] > 0.95 and 0.5 < many["share_of_linear"] < 1
    assert one["audio_hours"] == many["audio_hours"] and many["simulated_seconds"] < one["simulated_seconds"] / 4
    assert many["parent_busy"] < 1 and many["ledger_busy"] > 0 and many["parent_ms_per_line"] > 0
    assert not list(tmp_path.iterdir())
    wrong = csm("bench", "workers", "--device", "tpu")
    assert wrong.code == 2 and "cpu or h200" in wrong.err


def test_start_is_compared_with_the_minimum(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> tuple[float, str]:
        if "-c" in command:
            return 2.0, ""
        return 6.0, json.dumps({"rtf": 0.5, "duration_s": 4.0, "model": "x"})

    monkeypatch.setattr(commands, "run_process", run)
    assert csm("bench", "start", "--json").json == {
        "bench": "start",
        "model": "x",
        "say_seconds": 6.0,
        "import_torch_seconds": 2.0,
        "decode_seconds": 2.0,
        "times_minimum": 1.5,
    }


def test_start_reports_a_failure() -> None:
    assert len(commands.SENTENCE.split()) == 10
    with pytest.raises(CsmError, match="nothing"):
        commands.measure_start("/nothing/there", runs=1)
