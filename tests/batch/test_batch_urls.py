"""csm batch with manifest and outputs by URL, in an object store that fsspec keeps in memory: as with folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.audio import write_tone
from helpers.run import Result

from csm_cli.storage.remote import fetched_file

Csm = Callable[..., Result]
FLAGS = ("--max-duration", "0.3", "--no-trim", "--batch-size", 1)


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    fetched_file.cache_clear()
    yield system
    system.store.clear()


@pytest.fixture
def lines(memory: Any, tmp_path: Path) -> Path:
    """A manifest with a recording beside it, here and in the store."""
    rows: list[dict[str, Any]] = [{"id": f"l{n}", "speaker": n % 2, "text": f"Line {n}."} for n in range(5)]
    rows[1]["context"] = [{"speaker": 1, "text": "Ho.", "audio": "voices/tone.wav"}]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "voices").mkdir()
    write_tone(tmp_path / "voices" / "tone.wav")
    memory.pipe_file("/bucket/lines.jsonl", path.read_bytes())
    memory.pipe_file("/bucket/voices/tone.wav", (tmp_path / "voices" / "tone.wav").read_bytes())
    return path


def ids(text: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in text.splitlines()]


def test_a_batch_in_a_store_has_the_files_of_one_in_a_folder(
    csm: Csm, tiny_checkpoint: Path, lines: Path, memory: Any, tmp_path: Path
) -> None:
    batch = ("batch", "memory://bucket/lines.jsonl", "--model", tiny_checkpoint, *FLAGS, "-o")
    first = csm(*batch, "memory://bucket/out/{speaker}/{id}.wav", "--limit", 2, "--subs", "srt", "--save-codes")
    assert first.code == 0, first.err
    assert first.out.splitlines() == ["memory://bucket/out/0/l0.wav", "memory://bucket/out/1/l1.wav"]
    second = csm(*batch, "memory://bucket/out/{speaker}/{id}.wav", "--subs", "srt", "--save-codes")
    assert second.code == 0 and "5 items: 3 written, 2 reused" in second.err
    local = csm(
        *("batch", lines, "--model", tiny_checkpoint, *FLAGS, "-o", tmp_path / "out" / "{speaker}" / "{id}.wav"),
        *("--subs", "srt", "--save-codes"),
    )
    assert local.code == 0
    files = {path.removeprefix("/bucket/out/"): memory.cat_file(path) for path in memory.find("/bucket/out")}
    here = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert files.keys() == here.keys() - {"results.jsonl.lock"}
    assert all(data == here[name].read_bytes() for name, data in files.items() if name != "results.jsonl")
    assert sorted(ids(files["results.jsonl"])) == [f"l{n}" for n in range(5)]
    records = [json.loads(line) for line in files["results.jsonl"].splitlines()]
    assert records[0]["output"] == "memory://bucket/out/0/l0.wav"
    assert records[0]["subtitles"] == {"srt": "memory://bucket/out/0/l0.srt"}
    plan = csm(*batch, "memory://bucket/out/{speaker}/{id}.wav", "--subs", "srt", "--plan", "--json")
    assert plan.json["shards"][0]["done"] == 5
    memory.rm_file("/bucket/out/0/l0.wav")
    again = csm(*batch, "memory://bucket/out/{speaker}/{id}.wav", "--subs", "srt", "--save-codes")
    assert again.code == 0 and "1 written, 4 reused" in again.err
    assert csm("results", "memory://bucket/out", "--json").json["ok"] == 5
    refused = csm(*batch, "memory://bucket/out/{speaker}/{id}.wav", "--force", "--no-clobber")
    assert refused.code == 2 and "exists already" in refused.err


def test_shards_are_packed_in_a_store_and_merged(
    csm: Csm, tiny_checkpoint: Path, lines: Path, memory: Any, tmp_path: Path
) -> None:
    batch = ("batch", lines, "--model", tiny_checkpoint, *FLAGS, "--shard-size", 2, "--save-codes", "-o")
    result = csm(*batch, "memory://bucket/one/part-{shard:02d}.tar", "--limit", 3)
    assert result.code == 0 and result.out == "memory://bucket/one/part-01.tar\n", result.err
    assert memory.exists("/bucket/one/.items/l2.flac"), "waits for the next run"
    result = csm(*batch, "memory://bucket/one/part-{shard:02d}.tar")
    assert result.code == 0 and result.out.splitlines()[-1] == "memory://bucket/one/part-03.tar", result.err
    assert sorted(memory.find("/bucket/one")) == [
        *(f"/bucket/one/part-0{n}.tar" for n in (1, 2, 3)),
        "/bucket/one/results.jsonl",
    ]
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "speaker": 0, "text": "Other."}\n')
    options = ("--model", tiny_checkpoint, *FLAGS)
    assert csm("batch", other, *options, "-o", tmp_path / "two" / "part-{shard:02d}.tar").code == 0
    for _ in range(2):  # the second time changes nothing
        merged = csm("merge", "memory://bucket/one", tmp_path / "two", "-o", "memory://bucket/all")
        assert merged.code == 0 and merged.out == "memory://bucket/all/results.jsonl\n", merged.err
    found: list[str] = []
    for path in memory.glob("/bucket/all/*.tar"):
        with tarfile.open(fileobj=io.BytesIO(memory.cat_file(path))) as tar:
            found += [name for name in tar.getnames() if name.endswith(".flac")]
    assert sorted(found) == [*(f"l{n}.flac" for n in range(5)), "x.flac"]
    records = [json.loads(line) for line in memory.cat_file("/bucket/all/results.jsonl").splitlines()]
    assert {record["id"]: record["shard"] for record in records}["x"] == "part-04.tar" and len(records) == 6
    assert csm("results", "memory://bucket/all", "--json").json["ok"] == 6
    twice = csm("merge", "memory://bucket/all", "memory://bucket/one", "-o", tmp_path / "three")
    assert twice.code == 3 and "two of them" in twice.err and not (tmp_path / "three").exists()


def test_outputs_by_file_url_are_a_folder(csm: Csm, tiny_checkpoint: Path, lines: Path, tmp_path: Path) -> None:
    batch = ("batch", lines.as_uri(), "--model", tiny_checkpoint, *FLAGS, "-o", f"file://{tmp_path}/out/{{id}}.wav")
    assert csm(*batch, "--limit", 1).out == f"{tmp_path}/out/l0.wav\n"
    assert csm(*batch, "--plan", "--json").json["shards"][0]["done"] == 1
    assert csm("results", f"file://{tmp_path}/out", "--json").json["ok"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("memory://bucket/none.jsonl", "-o", "{id}.wav"), 3, "no such file"),
        (("lines.jsonl", "-o", "ftp://host/{id}.wav"), 2, "ftp:// is not supported"),
        (("lines.jsonl", "-o", "memory://bucket/{id}.wav", "--report", "a.html"), 2, "--report"),
        (("lines.jsonl", "-o", "memory://bucket/out"), 2, "{id}.wav"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    csm: Csm, lines: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    monkeypatch.chdir(lines.parent)
    result = csm("batch", *arguments)
    assert result.code == code and hint in result.err and "Traceback" not in result.err


def test_a_recording_that_is_not_beside_the_manifest_is_reported(csm: Csm, lines: Path, memory: Any) -> None:
    memory.rm_file("/bucket/voices/tone.wav")
    result = csm("batch", "memory://bucket/lines.jsonl", "-o", "memory://bucket/out/{id}.wav")
    assert result.code == 3 and "memory://bucket/lines.jsonl:2" in result.err and "voices/tone.wav" in result.err
    assert not memory.find("/bucket/out")


@pytest.mark.parametrize("command", [("say", "Hi.", "-o", "s3://bucket/a.wav"), ("data", "check", "s3://bucket/set")])
def test_other_commands_name_no_urls(csm: Csm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = csm(*command)
    assert result.code == 2 and "s3://bucket/" in result.err and not list(tmp_path.iterdir())
