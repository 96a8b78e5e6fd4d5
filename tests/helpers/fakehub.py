"""A small server on this machine that answers as Hugging Face does, and the cache that is filled from it."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from helpers.tiny import Shape, random_csm

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
        self.path = unquote(self.path)
        if self.path.startswith("/api/models/"):
            return self.list_folder()
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

    def list_folder(self) -> None:
        """GET of /api/models/OWNER/NAME/tree/REVISION/FOLDER."""
        owner, name, _, _, folder = self.path.partition("?")[0].removeprefix("/api/models/").split("/", 4)
        self.hub.asked.append(f"{folder}/")
        path = self.hub.repositories[f"{owner}/{name}"] / folder
        if not path.is_dir():
            return self.refuse(404, "EntryNotFound")
        entries = [
            {"type": "file", "path": f"{folder}/{each.name}", "size": each.stat().st_size, "oid": "0" * 40}
            for each in path.iterdir()
        ]
        return self.send(json.dumps(entries).encode(), body=True)

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


@pytest.fixture(scope="session")
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


def dead_server() -> str:
    """The address of a port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
