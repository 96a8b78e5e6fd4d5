"""`csm batch --plan`: what remains, by shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

Csm = Callable[..., Result]


def batch(csm: Csm, checkpoint: Path, folder: Path, *flags: object) -> Result:
    path = folder / "lines.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"id": f"l{n}", "text": "Hello."}) + "\n" for n in range(7)))
    options = ("--model", checkpoint, "--max-duration", "0.2", "--no-trim")
    return csm("batch", path, "-o", folder / "out-{shard}" / "{id}.wav", *options, *flags)


def test_a_plan_says_which_shards_to_run_again(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert batch(csm, tiny_checkpoint, tmp_path, "--shard", "1/3").code == 0
    assert batch(csm, tiny_checkpoint, tmp_path, "--shard", "2/3", "--limit", 1).code == 0
    plan = batch(csm, tiny_checkpoint, tmp_path, "--plan", "--shard", "slurm/3", "--json").json
    assert [(each["shard"], each["items"], each["done"], each["left"]) for each in plan["shards"]] == [
        (1, 3, 3, 0),
        (2, 2, 1, 1),
        (3, 2, 0, 2),
    ]
    assert plan["unfinished"] == "2-3" and plan["shards"][2]["chars_left"] == 12
    lines = batch(csm, tiny_checkpoint, tmp_path, "--plan", "--shard", "1/3")
    assert lines.code == 0 and "--array=2-3" in lines.out
    assert not (tmp_path / "out-3").exists(), "nothing is written"


def test_a_plan_counts_failures_and_changed_rows_as_left(
    csm: Csm, silent_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert batch(csm, silent_checkpoint, tmp_path).code == 1
    (shard,) = batch(csm, silent_checkpoint, tmp_path, "--plan", "--json").json["shards"]
    assert (shard["left"], shard["failed"]) == (7, 7)
    (shard,) = batch(csm, tiny_checkpoint, tmp_path, "--plan", "--json").json["shards"]
    assert (shard["left"], shard["failed"]) == (7, 0), "another model: nothing is known about it"


@pytest.mark.parametrize("shard", ["slurm", "4/3", "slurm/0"])
def test_a_plan_of_an_impossible_shard_is_refused(csm: Csm, tiny_checkpoint: Path, tmp_path: Path, shard: str) -> None:
    assert batch(csm, tiny_checkpoint, tmp_path, "--plan", "--shard", shard).code == 2


def estimate(csm: Csm, folder: Path, *flags: object) -> Result:
    path = folder / "many.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 140}) + "\n" for _ in range(100)))
    return csm("batch", path, "--estimate", *flags)


def test_an_estimate_scales_with_devices_and_names_its_sources(csm: Csm, tmp_path: Path) -> None:
    one, four = (estimate(csm, tmp_path, "--gpu", "cpu", "--gpus", n, "--price", 2, "--json").json for n in (1, 4))
    assert one["lines"] == 100 and one["audio_hours"] == pytest.approx(1000 / 3600, rel=0.01)
    assert one["hours"] == pytest.approx(4 * four["hours"], rel=0.05)
    assert one["cost"] == pytest.approx(2 * one["device_hours"], abs=0.01)
    assert one["wav_bytes"] == 48_000_000 > one["flac_bytes"] > 0
    assert "measured" in one["sources"]["speed"]
    assert "not measured" in estimate(csm, tmp_path, "--gpu", "h100", "--json").json["sources"]["speed"]


def test_an_estimate_says_where_the_parent_is_the_limit(csm: Csm, tmp_path: Path) -> None:
    record = estimate(csm, tmp_path, "--gpus", 100000, "--json").json
    assert record["parent_load"] == 1
    assert "limit" in estimate(csm, tmp_path, "--gpus", 100000).out


def test_an_estimate_of_an_unknown_device_is_refused(csm: Csm, tmp_path: Path) -> None:
    result = estimate(csm, tmp_path, "--gpu", "abacus")
    assert result.code == 2 and "h200" in result.err
