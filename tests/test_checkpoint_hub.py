"""Checkpoints on Hugging Face: huggingface_hub's own code against a small server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny import Shape, random_csm

from csm_cli.checkpoint import open_checkpoint
from csm_cli.errors import CheckpointInvalid, ModelError, ModelGated, ModelNotFound, ModelOffline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/voice"


@dataclass
class FakeHub:
    """Folders served as repositories; `asked` are the files asked for, `token` opens the gated ones."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    token: str = "hf_secret"
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE, with the headers and error codes of huggingface.co."""

    def __init__(self, hub: FakeHub, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        repository = f"{owner}/{name}"
        self.hub.asked.append(file)
        folder = self.hub.repositories.get(repository)
        if folder is None:
            return self.refuse(401, "RepoNotFound")
        if repository in self.hub.gated and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self.refuse(401, "GatedRepo")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if not (folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send((folder / file).read_bytes(), body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{zlib.crc32(content):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeHub]:
    hub = FakeHub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        server.shutdown()


@pytest.fixture
def point_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Points huggingface_hub, whose constants are read once from the environment, to a server and an empty cache."""
    constants = huggingface_hub.constants

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    return point


@pytest.fixture
def hub(server: FakeHub, point_to: Callable[[str], None]) -> FakeHub:
    point_to(server.url)
    return server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As csm-1b is published: shards the config names, and another format's weights under the usual name."""
    folder = tmp_path_factory.mktemp("whole")
    random_csm(Shape(codebooks=4, codes=32)).save_pretrained(folder, max_shard_size="200KB")
    index = "transformers.safetensors.index.json"
    (folder / "model.safetensors.index.json").rename(folder / index)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": index}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text("never fetched")
    return folder


def complaint(kind: type[ModelError], model: str = ID, revision: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_checkpoint(model, revision)
    assert caught.value.code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_what_the_config_names_is_fetched(hub: FakeHub, whole: Path) -> None:
    hub.repositories[ID] = whole
    checkpoint = open_checkpoint(ID)
    local = open_checkpoint(str(whole))
    assert (checkpoint.name, checkpoint.revision, checkpoint.config) == (ID, COMMIT, local.config)
    assert all(tensor.equal(local.weights[name]) for name, tensor in checkpoint.weights.items())
    assert set(checkpoint.codec_weights) == set(local.codec_weights)
    shards = {path.name for path in whole.glob("model-*.safetensors")}
    assert len(shards) > 1
    small = {"config.json", "transformers.safetensors.index.json", "tokenizer.json", "generation_config.json"}
    assert set(hub.asked) == shards | small


def test_what_is_cached_opens_without_a_network(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[ID] = whole
    open_checkpoint(ID)
    point_to(dead_server())
    assert open_checkpoint(ID).revision == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint(ID).revision == COMMIT


def test_files_that_may_be_absent_may_be_absent_offline(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], tmp_path: Path
) -> None:
    hub.repositories[ID] = Path(shutil.copytree(whole, tmp_path / "copy"))
    (tmp_path / "copy" / "generation_config.json").unlink()
    open_checkpoint(ID)
    point_to(dead_server())
    assert open_checkpoint(ID).defaults.temperature == 0.9


def dead_server() -> str:
    """The address of a port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_network_and_nothing_cached(point_to: Callable[[str], None]) -> None:
    point_to(dead_server())
    assert "config.json of sesame/csm-1b is not in the cache" in complaint(ModelOffline, "sesame/csm-1b")


def test_a_shard_that_is_not_cached_is_named(
    hub: FakeHub, whole: Path, point_to: Callable[[str], None], tmp_path: Path
) -> None:
    hub.repositories[ID] = whole
    checkpoint = open_checkpoint(ID)
    shard = sorted(checkpoint.tokenizer_file.parent.glob("model-*"))[0]
    shard.unlink()
    point_to(dead_server())
    assert f"{shard.name} of {ID} is not in the cache" in complaint(ModelOffline)


def test_a_gate_says_where_to_knock(hub: FakeHub, whole: Path) -> None:
    hub.repositories = {"sesame/csm-1b": whole, ID: whole}
    hub.gated = {"sesame/csm-1b", ID}
    line = complaint(ModelGated, "sesame/csm-1b")
    for words in ("https://huggingface.co/sesame/csm-1b", "`hf auth login`", "unsloth/csm-1b"):
        assert words in line
    assert "unsloth" not in complaint(ModelGated)


def test_an_unknown_repository_lists_the_near_ones(hub: FakeHub) -> None:
    line = complaint(ModelNotFound, "seasame/csm-1b")
    assert "neither a local checkpoint nor a Hugging Face id" in line
    assert "did you mean sesame/csm-1b" in line


def test_a_name_that_the_hub_cannot_have_is_unknown(hub: FakeHub) -> None:
    assert "neither" in complaint(ModelNotFound, "some--one/voice")


def test_an_unknown_revision_is_named(hub: FakeHub, whole: Path) -> None:
    hub.repositories[ID] = whole
    assert "has no revision 'v9'" in complaint(ModelNotFound, revision="v9")
    assert open_checkpoint(ID, COMMIT).revision == COMMIT


def test_another_model_is_refused_before_its_weights_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    hub.repositories[ID] = tmp_path
    assert f"{ID}: config.json says model_type 'llama'" in complaint(CheckpointInvalid)
    assert set(hub.asked) == {"config.json"}


def test_a_repository_without_a_checkpoint_says_what_it_lacks(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[ID] = tmp_path
    assert f"{ID} on Hugging Face has no config.json" in complaint(CheckpointInvalid)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"{ID} is an adapter" in complaint(CheckpointInvalid)


def test_the_environment_says_which_hub_cache_and_token(server: FakeHub, whole: Path, tmp_path: Path) -> None:
    server.repositories[ID] = whole
    server.gated = {ID}
    script = f"from csm_cli.checkpoint import open_checkpoint; print(open_checkpoint({ID!r}).tokenizer_file)"
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": server.token}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | variables | more,
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(done.stdout.strip()).is_relative_to(tmp_path)
        variables["HF_ENDPOINT"] = dead_server()
