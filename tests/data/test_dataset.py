"""Totals of a dataset, and speaker numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csm_cli.data.dataset import ChunkResult, DatasetCounts, DroppedClip, SpeakerNumbers


def counts() -> DatasetCounts:
    total = DatasetCounts()
    total.add(ChunkResult([(0, 1.5), (0, 2.25), (12, 3600.0)], [DroppedClip("a", "m:1", "silence", "é", 1.5)]))
    total.add(
        ChunkResult(
            [], [DroppedClip("b", "m:2", "invalid row", "is none"), DroppedClip("c", "m:3", "silence", "", 2.5)]
        )
    )
    return total


def test_totals_list_reasons_in_the_order_of_the_checks() -> None:
    record = counts().to_json()
    assert record["usable"] == {"clips": 3, "hours": 1.001} and record["speakers"] == {"0": 2, "12": 1}
    assert list(record["dropped"].items()) == [
        ("invalid row", {"clips": 1, "hours": 0.0}),
        ("silence", {"clips": 2, "hours": 0.0011}),
    ]
    assert [clip["id"] for clip in record["dropped_clips"]] == ["a", "b", "c"]


def test_chunk_result_survives_json() -> None:
    result = ChunkResult([(3, 1.5), (4, 1.5)], [DroppedClip("a", "m:1", "silence", "é", 1.5)], trained=1)
    assert ChunkResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_report_files(tmp_path: Path) -> None:
    total = counts()
    total.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["usable"]["clips"] == 3
    lines = (tmp_path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"id": "a", "place": "m:1", "reason": "silence", "detail": "é", "seconds": 1.5}
    assert len(lines) == 3


def test_histogram(tmp_path: Path) -> None:
    counts().save_plot(tmp_path / "lengths.png")
    DatasetCounts().save_plot(tmp_path / "empty.png")
    for name in ("lengths.png", "empty.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_warns_once_where_a_number_was_assigned_to_a_name(caplog: pytest.LogCaptureFixture) -> None:
    speakers = SpeakerNumbers()
    assert [speakers.number(label) for label in ("1", "ana", "0", "1", "0")] == [1, 0, 0, 1, 0]
    assert len(caplog.records) == 1 and "speaker number 0" in caplog.records[0].message


def test_speaker_numbers() -> None:
    speakers = SpeakerNumbers(default=5)
    labels = ["1", "ana", None, "ben", "ana", "12345678901", "7"]
    assert [speakers.number(label) for label in labels] == [1, 0, 5, 2, 0, 3, 7]
    assert speakers.names == {"ana": 0, "ben": 2, "12345678901": 3}
