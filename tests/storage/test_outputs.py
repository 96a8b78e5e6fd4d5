"""Outputs in an object store, which fsspec keeps in memory here: locks, logs, retries and messages."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from csm_cli.batch.ledger import Ledger
from csm_cli.errors import InputError, OutputFailed, OutputRefused, UsageError
from csm_cli.storage import outputs as outputs_module
from csm_cli.storage import remote
from csm_cli.storage.outputs import LocalOutputs, RemoteOutputs, open_outputs
from csm_cli.storage.remote import attempt, fetched_file, is_url, local_name

URL = "memory://bucket/out"
RESULT = {"id": "a", "status": "ok", "file": "a.wav", "fingerprint": "1"}


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store, with waits of nothing."""
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def stored(memory: Any) -> dict[str, bytes]:
    return {name.removeprefix("/bucket/out/"): memory.cat_file(name) for name in memory.find("/bucket/out")}


def add(outputs: RemoteOutputs, ledger: Ledger, name: str, **more: object) -> None:
    path = outputs.folder / f"{name}.wav"
    path.write_bytes(name.encode())
    ledger.append(RESULT | {"id": name, "file": path.name} | more, [path])


def test_files_and_results_are_in_the_store_when_a_run_has_ended(memory: Any) -> None:
    outputs = RemoteOutputs(URL)
    with Ledger(outputs) as ledger:
        add(outputs, ledger, "a")
        ledger.flush()
        assert {".csm-lock", "a.wav"} < stored(memory).keys(), "the file is there, before the run has ended"
        add(outputs, ledger, "b")
    files = stored(memory)
    assert files.keys() == {"a.wav", "b.wav", "results.jsonl"} and files["b.wav"] == b"b"
    assert [json.loads(line)["id"] for line in files["results.jsonl"].splitlines()] == ["a", "b"]
    assert not outputs.folder.exists() or not list(outputs.folder.iterdir())
    with Ledger(RemoteOutputs(URL)) as again:
        assert again.entries.keys() == {"a", "b"}


def crash(memory: Any, *names: str) -> None:
    """Records items, and leaves what a killed process leaves but for its lock: nothing is merged."""
    outputs = RemoteOutputs(URL)
    with Ledger(outputs) as ledger:
        for name in names:
            add(outputs, ledger, name)
        ledger.flush()
        left = stored(memory)
    memory.store.clear()
    for name in left.keys() - {".csm-lock"}:
        memory.pipe_file(f"/bucket/out/{name}", left[name])


def test_results_of_a_killed_run_are_read_and_merged_once(memory: Any) -> None:
    crash(memory, "a", "b")
    assert not {"results.jsonl"} & stored(memory).keys()
    with RemoteOutputs(URL).read_log("results.jsonl") as log:
        assert [json.loads(line)["id"] for line in log] == ["a", "b"]
    parts = {name: data for name, data in stored(memory).items() if name.startswith(".results/")}
    with Ledger(RemoteOutputs(URL)) as ledger:
        assert ledger.entries.keys() == {"a", "b"}
    for name, data in parts.items():  # of a run that was killed before it removed them
        memory.pipe_file(f"/bucket/out/{name}", data)
    outputs = RemoteOutputs(URL)
    with Ledger(outputs) as ledger:
        add(outputs, ledger, "c")
    assert [json.loads(line)["id"] for line in stored(memory)["results.jsonl"].splitlines()] == ["a", "b", "c"]
    assert not [name for name in stored(memory) if name.startswith(".")]


def lock(memory: Any, beat: int = 0) -> None:
    content = {"token": "0123456789abcdef", "host": "elsewhere", "beat": beat}
    memory.pipe_file("/bucket/out/.csm-lock", json.dumps(content).encode())


def test_a_run_that_lives_on_another_host_is_not_disturbed(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lock(memory)
    monkeypatch.setattr(outputs_module.time, "sleep", lambda _: lock(memory, 1))
    with pytest.raises(UsageError, match="in use by another run on elsewhere"):
        Ledger(RemoteOutputs(URL))
    assert b"elsewhere" in stored(memory)[".csm-lock"]


def test_the_lock_of_a_run_that_was_killed_here_is_taken_over_at_once(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: float) -> None:
        raise AssertionError

    monkeypatch.setattr(outputs_module.time, "sleep", fail)
    lock(memory)
    outputs = RemoteOutputs(URL)
    outputs.folder.mkdir(parents=True)
    (outputs.folder / ".owner").write_text("0123456789abcdef")
    (outputs.folder / "left.wav").write_bytes(b"half")
    with Ledger(outputs):
        assert b"elsewhere" not in stored(memory)[".csm-lock"] and not (outputs.folder / "left.wav").exists()


def test_the_lock_of_a_dead_run_is_taken_over(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_module, "_STALE_SECONDS", 0.0)
    monkeypatch.setattr(outputs_module.time, "sleep", lambda _: None)
    lock(memory)
    with Ledger(RemoteOutputs(URL)):
        assert b"elsewhere" not in stored(memory)[".csm-lock"]


def test_a_run_that_lost_its_lock_records_nothing_more(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_module, "_BEAT_SECONDS", 0.01)
    outputs = RemoteOutputs(URL)

    def run() -> None:
        with Ledger(outputs) as ledger:
            add(outputs, ledger, "a")
            ledger.flush()
            lock(memory)
            while outputs._lost is None:
                pass
            add(outputs, ledger, "b")

    with pytest.raises(OutputFailed, match="taken over by another run on elsewhere"):
        run()
    files = stored(memory)
    assert b"elsewhere" in files[".csm-lock"] and b'"b"' not in b"".join(files.values())


def test_an_upload_that_fails_for_a_while_is_repeated(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def put_file(source: str, target: str, **_: object) -> None:
        calls.append(target)
        if len(calls) < 4:
            raise ConnectionError("reset by peer")
        memory.pipe_file(target, Path(source).read_bytes())

    outputs = RemoteOutputs(URL)
    system, _ = remote.filesystem(URL)
    monkeypatch.setattr(system, "put_file", put_file)
    with Ledger(outputs) as ledger:
        add(outputs, ledger, "a")
        ledger.flush()
    assert stored(memory)["a.wav"] == b"a" and calls.count("/bucket/out/a.wav") == 4


def test_an_item_is_not_recorded_without_its_file(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = RemoteOutputs(URL)
    system, _ = remote.filesystem(URL)

    def put_file(*_: object, **__: object) -> None:
        raise ConnectionError("reset by peer")

    def run() -> None:
        with Ledger(outputs) as ledger:
            add(outputs, ledger, "a")
            ledger.flush()

    with monkeypatch.context() as patch, pytest.raises(OutputFailed, match=r"out/a\.wav: cannot be reached"):
        patch.setattr(system, "put_file", put_file)
        run()
    assert not stored(memory)
    with Ledger(RemoteOutputs(URL)) as ledger:
        assert not ledger.entries


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (PermissionError("Access Denied"), "access is denied"),
        (FileNotFoundError("The specified bucket does not exist"), "no such bucket"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), "AWS_PROFILE"),
        (type("EndpointConnectionError", (Exception,), {})("Could not connect"), "cannot be reached"),
        (OSError(22, "odd\nthing"), "odd thing"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(problem: Exception, message: str) -> None:
    def fail() -> None:
        raise problem

    with pytest.raises(OutputRefused, match=message) as caught:
        attempt(OutputRefused, "s3://bucket/a", fail)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("s3://bucket/a: ")


def test_a_missing_file_is_told_from_a_missing_bucket() -> None:
    def fail() -> None:
        raise FileNotFoundError("my-bucket/none")

    with pytest.raises(FileNotFoundError):
        attempt(InputError, "s3://my-bucket/none", fail)


@pytest.mark.parametrize(
    ("name", "path"), [("file:///a/b%20c", "/a/b c"), ("file://localhost/a", "/a"), ("a/b", "a/b")]
)
def test_file_urls_are_paths(name: str, path: str) -> None:
    assert local_name(name) == path and not is_url(path)
    outputs = open_outputs(local_name(name))
    assert isinstance(outputs, LocalOutputs) and outputs.folder == Path(path)


@pytest.mark.parametrize(("name", "hint"), [("ftp://host/a", "s3://"), ("gs://bucket/a", r"csm-cli\[gcs\]")])
def test_a_scheme_that_cannot_be_used_is_refused(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec: Callable[..., object] = lambda library: None if library == "gcsfs" else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(UsageError, match=hint):
        open_outputs(name)
    with pytest.raises(UsageError, match="three slashes"):
        local_name("file://host/a")


def test_files_beside_a_manifest_are_fetched_once(memory: Any) -> None:
    memory.pipe_file("/bucket/in/a/b.wav", b"1")
    path = fetched_file("memory://bucket/in", "a/b.wav")
    memory.rm_file("/bucket/in/a/b.wav")
    assert path == fetched_file("memory://bucket/in", "a/b.wav") and path and path.read_bytes() == b"1"
    assert path.name == "b.wav" and fetched_file("memory://bucket/in", "../secret") is None
    assert fetched_file("memory://bucket/in", "none.wav") is None


def test_a_file_that_is_too_large_is_not_fetched(memory: Any) -> None:
    memory.pipe_file("/bucket/in/large", bytes(3 << 20))
    with pytest.raises(InputError, match="larger than 2 MB"):
        remote.fetch("memory://bucket/in/large", io.BytesIO(), 2 << 20)
