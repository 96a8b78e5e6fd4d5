"""csm bench lines: its own figures, and that memory does not grow with a manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import Result


def test_the_bench_tells_time_and_memory(csm: Callable[..., Result], tmp_path: Path) -> None:
    figures = csm("bench", "lines", "--count", 50, "--folder", tmp_path, "--json").json
    assert figures["lines"] == 50 and figures["processor_ms_per_line"] > 0 and figures["peak_mb"] > 100
    assert figures["growth_bytes_per_line"] >= 0 and figures["peak_mb_of_ten_lines"] <= figures["peak_mb"]
    assert not list(tmp_path.iterdir())
