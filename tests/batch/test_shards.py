"""Items in tar files and Parquet tables: each in one of them, whatever ends the run; read back by other programs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers.run import Result
from helpers.s3 import PYTHON

from csm_cli.batch import shards
from csm_cli.errors import UsageError
from csm_cli.storage.outputs import LocalOutputs

Csm = Callable[..., Result]


def batch(csm: Csm, checkpoint: Path, folder: Path, name: str, *flags: object, count: int = 5) -> Result:
    folder.mkdir(exist_ok=True)
    path = folder / "lines.jsonl"
    lines = [{"id": f"l.{n}", "speaker": n % 2, "text": f"Line {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--model", checkpoint, "--max-duration", "0.3", "--no-trim", "--shard-size", 2)
    return csm("batch", path, "-o", folder / "out" / name, *options, *flags)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def test_items_are_packed_into_tar_files_with_text_metadata_and_codes(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = batch(csm, tiny_checkpoint, tmp_path, "part-{shard:03d}.tar", "--save-codes")
    assert result.code == 0
    files = sorted((tmp_path / "out").glob("part-*.tar"))
    assert [path.name for path in files] == [f"part-00{n}.tar" for n in (1, 2, 3)]
    assert result.out.splitlines() == list(map(str, files)) and not (tmp_path / "out" / ".items").exists()
    found = {name: data for path in files for name, data in members(path).items()}
    keys = {name.partition(".")[0] for name in found}
    assert len(keys) == 5 and len(found) == 20
    for key in keys:
        metadata = json.loads(found[f"{key}.json"])
        assert found[f"{key}.txt"].decode() == metadata["text"] == f"Line {metadata['id'][2:]}."
        samples, _ = soundfile.read(io.BytesIO(found[f"{key}.flac"]))
        codes = np.load(io.BytesIO(found[f"{key}.codes.npy"]))
        assert codes.shape[1] == 8 and abs(len(samples) - len(codes) * 1920) <= 1920
    assert {record["shard"] for record in records(tmp_path).values()} == {path.name for path in files}
    again = batch(csm, tiny_checkpoint, tmp_path, "part-{shard:03d}.tar", "--save-codes")
    assert again.code == 0 and "5 reused" in again.err
    plan = batch(csm, tiny_checkpoint, tmp_path, "part-{shard:03d}.tar", "--plan", "--json").json
    assert plan["shards"][0]["done"] == 5


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="webdataset and datasets are not installed: make storage")
def test_webdataset_and_datasets_read_the_shards(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("tar", "parquet"):
        assert batch(csm, tiny_checkpoint, tmp_path / name, f"{{shard}}.{name}", "--save-codes").code == 0
    folders = [tmp_path / name / "out" for name in ("tar", "parquet")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHON), str(Path(__file__).parent / "readers" / "read_shards.py"), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    for reader, rows in json.loads(done.stdout).items():
        assert {row["id"]: row["text"] for row in rows} == {f"l.{n}": f"Line {n}." for n in range(5)}, reader
        assert all(row["rate"] == 24000 and row["frames"] == round(row["seconds"] / 0.08) > 0 for row in rows), reader


def test_parquet_tables_are_read_by_csm_data(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert batch(csm, tiny_checkpoint, tmp_path, "{shard:02d}.parquet", count=2).code == 0
    checked = csm("data", "check", tmp_path / "out" / "01.parquet", "--json", "--max-silence", 30)
    assert checked.json["usable"]["clips"] == 2, checked.err


@pytest.mark.parametrize("step", ["atomic_file", "unlink"])
def test_a_run_that_ends_while_it_packs_packs_each_item_once(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(Path, "unlink", fail)
        else:
            patch.setattr(shards, "write_tar", fail)
        assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 130
    assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 0
    names = Counter(name for path in (tmp_path / "out").glob("*.tar") for name in members(path) if ".flac" in name)
    assert len(names) == 5 and set(names.values()) == {1}
    assert not list((tmp_path / "out").glob("**/*.flac"))


def test_what_a_killed_run_had_packed_and_not_removed_is_removed(
    csm: Csm, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalOutputs, "remove", fail)
        assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 130
    assert len(list((tmp_path / "out" / ".items").iterdir())) >= 2  # packed, and maybe others
    assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 0
    assert not (tmp_path / "out" / ".items").exists()


def test_a_lost_shard_is_generated_again(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar")
    (tmp_path / "out" / "1.tar").unlink()
    assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 0
    names = [name for path in (tmp_path / "out").glob("*.tar") for name in members(path) if name.endswith(".txt")]
    assert len(names) == len(set(names)) == 5


def test_an_item_that_is_packed_cannot_change(csm: Csm, tiny_checkpoint: Path, tmp_path: Path) -> None:
    batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar")
    result = batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar", "--seed", 7)
    assert result.code == 2 and ".tar" in result.err
    assert batch(csm, tiny_checkpoint, tmp_path, "{shard}.tar").code == 0


def test_a_shard_is_known_by_its_name() -> None:
    pattern = shards.ShardPattern("a.b/part-{shard:03d}.x.tar", 10)
    assert [pattern.number(pattern.path(number).name) for number in (1, 20, 12345)] == [1, 20, 12345]
    assert pattern.number("part-1.tar") == 0


@pytest.mark.parametrize("pattern", ["part.tar", "{id}.tar", "{shard}/a.tar", "{shard:q}.tar"])
def test_an_impossible_pattern_of_shards_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        shards.ShardPattern(pattern, 10)
