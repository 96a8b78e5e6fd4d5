"""What came of a dataset, added up."""

from __future__ import annotations

import json
from pathlib import Path

from csm_cli.data.clips import ClipFindings, DroppedClip
from csm_cli.data.counts import DatasetCounts


def tally() -> DatasetCounts:
    total = DatasetCounts()
    total.add(ClipFindings([(0, 1.5), (0, 2.25), (12, 3600.0)], [DroppedClip("a", "m:1", "silence", "é", 1.5)]))
    total.add(
        ClipFindings(
            [], [DroppedClip("b", "m:2", "broken row", "is none"), DroppedClip("c", "m:3", "silence", "", 2.5)]
        )
    )
    return total


def test_figures_and_what_was_left_out_in_the_order_of_the_checks() -> None:
    record = tally().record()
    assert record["kept"] == {"clips": 3, "hours": 1.001} and record["speakers"] == {"0": 2, "12": 1}
    assert list(record["left_out"].items()) == [
        ("broken row", {"clips": 1, "hours": 0.0}),
        ("silence", {"clips": 2, "hours": 0.0011}),
    ]
    assert [drop["id"] for drop in record["drops"]] == ["a", "b", "c"]


def test_findings_outlive_json() -> None:
    found = ClipFindings([(3, 1.5), (4, 1.5)], [DroppedClip("a", "m:1", "silence", "é", 1.5)], learned=1)
    assert ClipFindings.of(json.loads(json.dumps(found.record()))) == found


def test_files(tmp_path: Path) -> None:
    total = tally()
    total.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["kept"]["clips"] == 3
    lines = (tmp_path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"id": "a", "place": "m:1", "reason": "silence", "detail": "é", "seconds": 1.5}
    assert len(lines) == 3


def test_a_picture(tmp_path: Path) -> None:
    tally().save_plot(tmp_path / "lengths.png")
    DatasetCounts().save_plot(tmp_path / "empty.png")
    for name in ("lengths.png", "empty.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
