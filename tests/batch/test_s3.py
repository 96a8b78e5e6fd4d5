"""Batches in S3, on a server of its own process: kills, breaks and missing things leave nothing half or twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.run import Result
from helpers.s3 import S3, Link, link_to, needs_server, s3_server

from csm_cli.errors import OutputFailed
from csm_cli.storage import remote
from csm_cli.storage.outputs import RemoteOutputs

pytest.importorskip("s3fs")
pytestmark = [pytest.mark.slow, needs_server]
Csm = Callable[..., Result]
RUN = "import sys; from csm_cli.cli import main; sys.exit(main())"
COUNT = 8
FLAGS = ("--max-duration", "0.3", "--no-trim", "--batch-size", "1")


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture(autouse=True)
def link(server: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """What csm talks to the server through."""
    remote._filesystem.cache_clear()
    for name in server.system.find("bucket"):
        server.system.rm_file(name)
    with link_to(server.port) as link:
        for name, value in server.environment(link.port).items():
            monkeypatch.setenv(name, value)
        yield link
    remote._filesystem.cache_clear()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    rows = [{"id": f"l{n}", "speaker": n % 2, "text": f"Line {n}."} for n in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def expected(csm: Csm, tiny_checkpoint: Path, lines: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the same batch in a folder."""
    folder = tmp_path / "local"
    assert csm("batch", lines, "--model", tiny_checkpoint, *FLAGS, "-o", folder / "{id}.wav", "-q").code == 0
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


def assert_complete(server: S3, prefix: str, expected: dict[str, bytes]) -> None:
    """Every item is there, with the same bytes, and recorded once; nothing else is there."""
    files = server.files(prefix)
    results = [json.loads(line) for line in files.pop("results.jsonl").splitlines()]
    assert Counter(each["id"] for each in results) == Counter(f"l{n}" for n in range(COUNT))
    assert files == expected and not server.unfinished_uploads()


def test_a_batch_is_killed_in_the_middle_of_uploads(
    csm: Csm, tiny_checkpoint: Path, lines: Path, server: S3, link: Link, expected: dict[str, bytes], home: Path
) -> None:
    batch = ("batch", str(lines), "--model", str(tiny_checkpoint), *FLAGS, "-o", "s3://bucket/out/{id}.wav")
    for name in ("l2.wav", "/.results/", "l5.wav", "/results.jsonl"):
        before = server.files("out")
        link.broken.clear()
        link.breaks = lambda method, path, name=name: method == "PUT" and name in path
        environment = os.environ | server.environment(link.port) | {"CSM_HOME": str(home)}
        with subprocess.Popen([sys.executable, "-c", RUN, *batch, "-q"], env=environment) as run:
            assert link.broken.wait(200), "the upload has not begun"
            run.send_signal(signal.SIGKILL)
        files = server.files("out")
        assert files.get(name.strip("/")) == before.get(name.strip("/"))
        assert all(data == expected[each] for each, data in files.items() if each in expected)
        recorded = [json.loads(line)["id"] for each in files if "results" in each for line in files[each].splitlines()]
        assert all(f"{each}.wav" in files for each in recorded)
    link.breaks = lambda method, path: False
    last = csm(*batch)
    assert last.code == 0, last.err
    assert_complete(server, "out", expected)
    assert f"{COUNT} reused" in csm(*batch).err
    assert csm("results", "s3://bucket/out", "--json").json["ok"] == COUNT


def test_a_connection_that_breaks_for_a_while_changes_nothing(
    csm: Csm, tiny_checkpoint: Path, lines: Path, server: S3, link: Link, expected: dict[str, bytes]
) -> None:
    broken = Counter[str]()

    def breaks(method: str, path: str) -> bool:
        broken[path] += method == "PUT" and path.endswith((".wav", ".jsonl"))
        return 0 < broken[path] <= 2

    link.breaks = breaks
    server.system.put_file(str(lines), "bucket/lines.jsonl")
    batch = ("batch", "s3://bucket/lines.jsonl", "--model", tiny_checkpoint, *FLAGS, "--workers", 1)
    result = csm(*batch, "-o", "s3://bucket/out/{id}.wav")
    assert result.code == 0, result.err
    assert link.broken.is_set()
    assert_complete(server, "out", expected)


def test_a_network_that_goes_away_ends_the_run_and_the_next_goes_on(
    csm: Csm, tiny_checkpoint: Path, lines: Path, server: S3, link: Link, expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.01)
    batch = ("batch", lines, "--model", tiny_checkpoint, *FLAGS, "-o", "s3://bucket/out/{id}.wav")

    def breaks(method: str, path: str) -> bool:
        link.away = link.away or (method == "PUT" and "l3.wav" in path)
        return link.away

    link.breaks = breaks
    gone = csm(*batch, "-q")
    message = gone.err.splitlines()[-1]
    assert gone.code == 1 and "s3://bucket/out/l" in message and "cannot be reached" in message
    unreachable = csm(*batch, "-q")
    (message,) = unreachable.err.splitlines()
    assert unreachable.code == 2 and "cannot be reached" in message
    link.breaks, link.away = (lambda method, path: False), False
    remote._filesystem.cache_clear()
    assert csm(*batch).code == 0
    assert_complete(server, "out", expected)


def test_an_upload_in_parts_is_completed_or_not_there(
    server: S3, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PART_BYTES", 5 << 20)
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.01)
    data = os.urandom(12 << 20)
    outputs = RemoteOutputs("s3://bucket/out")
    with outputs.open_log("results.jsonl"):
        path = outputs.folder / "part-1.tar"
        path.write_bytes(data)
        link.breaks = lambda method, target: method == "PUT" and "partNumber=2" in target
        with pytest.raises(OutputFailed):
            outputs.publish(path)
        assert link.broken.is_set() and "part-1.tar" not in server.files("out") and path.exists()
        assert not server.unfinished_uploads()
        link.breaks = lambda method, target: False
        outputs.publish(path)
    assert server.files("out") == {"part-1.tar": data}
    server.system.call_s3("create_multipart_upload", Bucket="bucket", Key="out/part-2.tar")  # as a killed run leaves it
    server.system.call_s3("create_multipart_upload", Bucket="bucket", Key="other/part-2.tar")
    with RemoteOutputs("s3://bucket/out").open_log("results.jsonl"):
        assert server.unfinished_uploads() == ["other/part-2.tar"]


def test_two_runs_do_not_write_to_the_same_prefix(
    csm: Csm, tiny_checkpoint: Path, lines: Path, server: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batch = ("batch", lines, "--model", tiny_checkpoint, *FLAGS, "-o", "s3://bucket/out/{id}.wav", "-q")
    monkeypatch.setattr("csm_cli.storage.outputs._BEAT_SECONDS", 0.2)
    with RemoteOutputs("s3://bucket/out").open_log("results.jsonl"):
        here = csm(*batch)
        assert here.code == 2 and "in use by another run" in here.err
        monkeypatch.setenv("CSM_HOME", str(tmp_path / "another machine"))
        elsewhere = csm(*batch)
        assert elsewhere.code == 2 and "in use by another run on" in elsewhere.err
    assert not server.files("out")


def test_what_is_missing_is_said_in_one_line(
    csm: Csm, tiny_checkpoint: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*arguments: object, code: int) -> str:
        result = csm(*arguments, "-q")
        assert result.code == code
        (line,) = result.err.splitlines()
        return line

    batch = ("batch", lines, "--model", tiny_checkpoint, "-o")
    assert "no such bucket" in message(*batch, "s3://no-such-bucket/{id}.wav", code=2)
    none = csm("batch", "s3://bucket/none.jsonl", "-o", "{id}.wav", "-q")
    assert none.code == 3 and "s3://bucket/none.jsonl" in none.err and "no such file" in none.err
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    remote._filesystem.cache_clear()
    assert "AWS_PROFILE" in message(*batch, "s3://bucket/{id}.wav", code=2)
