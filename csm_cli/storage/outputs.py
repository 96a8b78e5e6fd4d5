"""Where the files of a batch end up: a folder of this machine, or a prefix of an object store.

An object store has no append and no lock. A log there is kept as parts, `.results/SESSION-NUMBER-OWNER.jsonl`, of the
lines of a few seconds each, which become one file when a run ends; the lock is an object that can only be created once,
rewritten every few seconds by the run that has it, and taken over where nobody rewrites it any more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from csm_cli.errors import CsmError, InputError, OutputFailed, OutputRefused, UsageError
from csm_cli.storage.files import exclusive_lock, write_atomically
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.paths import expand_path, user_data_folder
from csm_cli.storage.remote import TRIES, attempt, check_url, fetch, filesystem, is_url, upload

_LOG = logging.getLogger(__name__)
_BEAT_SECONDS = 10.0  # between two signs of life in a lock
_STALE_SECONDS = 35.0  # without one, the run that had the lock is dead
_PARTS = ".results"
_PART_NAME = re.compile(r"(\d{6})-(\d{6})-[0-9a-f]{16}\.jsonl")
_LOCK = ".csm-lock"
_OWNER = ".owner"  # file with the token of this machine's folder


class OutputStore(ABC):
    """Files are written below `folder`, on this machine; they are permanent, and seen by others, once published.

    Can be sent to other processes. interval: seconds for which lines of a log gather; threads: files to publish at
    once.
    """

    folder: Path
    interval: float
    threads: int

    @abstractmethod
    def location(self, path: Path) -> str:
        """How people name the file that is written to `path`."""

    @abstractmethod
    def exists(self, path: Path) -> bool:
        """Whether it is published. Raises OutputFailed."""

    @abstractmethod
    def publish(self, path: Path) -> None:
        """Makes a file permanent that was written to `path`. Raises OSError, OutputFailed: it is not there then."""

    @abstractmethod
    def read(self, path: Path) -> bytes:
        """The content of a published file. Raises OSError; InputError."""

    @abstractmethod
    def remove(self, path: Path) -> None:
        """Removes a published file, if there is one. Raises OSError, OutputFailed."""

    @abstractmethod
    def files(self, folder: str) -> list[Path]:
        """What is published below a folder of the store. Raises OutputFailed."""

    @abstractmethod
    def open_log(self, name: str) -> AbstractContextManager[None]:
        """Locks the store for this process; the log `name` is a file in `folder` meanwhile.

        Raises:
            UsageError: another run has the lock. OutputRefused: it cannot be written to.
        """

    @abstractmethod
    def append(self, lines: bytes) -> None:
        """Publishes lines that are appended to the open log. Raises OutputFailed."""

    @abstractmethod
    def read_log(self, name: str) -> IO[bytes]:
        """A log as an open file, also one that another run writes to. Raises FileNotFoundError; OSError; InputError."""


def open_outputs(name: str | Path) -> OutputStore:
    """The store of a folder or URL. Raises UsageError as `check_url`, OutputRefused as `expand_path`."""
    return RemoteOutputs(str(name)) if is_url(str(name)) else LocalOutputs(expand_path(str(name)))


class LocalOutputs(OutputStore):
    """A folder."""

    interval = 0.1  # each fsync is a write of the file system's journal
    threads = 8  # a journalling file system serves them with few writes

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def location(self, path: Path) -> str:
        return str(path)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def publish(self, path: Path) -> None:
        """Removes a file that cannot be flushed; one that the user has moved away already is ignored."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def files(self, folder: str) -> list[Path]:
        return [path for path in (self.folder / folder).rglob("*") if path.is_file()]

    def open_log(self, name: str) -> AbstractContextManager[None]:
        return exclusive_lock(self.folder, f"{name}.lock")

    def append(self, lines: bytes) -> None:
        pass  # the log itself is permanent

    def read_log(self, name: str) -> IO[bytes]:
        return (self.folder / name).open("rb")


class RemoteOutputs(OutputStore):
    """A prefix of an object store. folder: where files wait until they are uploaded; removed when a run ends."""

    interval = 5.0
    threads = 16

    def __init__(self, url: str, folder: Path | None = None) -> None:
        check_url(url)
        self._url = url.rstrip("/")
        self.folder = folder or user_data_folder() / "uploads" / fingerprint(self._url, length=16)
        self._names: set[int] | None = None  # hashes of what is published, once it is known
        self._log = ""
        self._token = ""
        self._session, self._parts = 0, list[str]()  # names of the log's parts
        self._lost: str | None = None  # who has the lock instead
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteOutputs, (self._url, self.folder)

    def location(self, path: Path) -> str:
        return self._url if path == self.folder else f"{self._url}/{path.relative_to(self.folder).as_posix()}"

    def exists(self, path: Path) -> bool:
        with self._guard:
            if self._names is None:
                self._names = {hash(name) for name in self._list("")}
            return hash(path.relative_to(self.folder).as_posix()) in self._names

    def publish(self, path: Path) -> None:
        if not path.exists():
            return  # published before
        upload(self.location(path), path, OutputFailed)
        path.unlink(missing_ok=True)
        with self._guard:
            if self._names is not None:
                self._names.add(hash(path.relative_to(self.folder).as_posix()))

    def read(self, path: Path) -> bytes:
        url = self.location(path)
        system, name = filesystem(url)
        data: bytes = attempt(InputError, url, lambda: system.cat_file(name))
        return data

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._remove(path.relative_to(self.folder).as_posix())
        with self._guard:
            if self._names is not None:
                self._names.discard(hash(path.relative_to(self.folder).as_posix()))

    def files(self, folder: str) -> list[Path]:
        return [self.folder / name for name in self._list(folder)]

    def append(self, lines: bytes) -> None:
        if self._lost is not None:
            raise OutputFailed(f"{self._url} was taken over by {self._lost}; wait for it to end, and run again")
        name = f"{_PARTS}/{self._session:06d}-{len(self._parts):06d}-{self._token}.jsonl"
        self._put(name, lines, OutputFailed)
        self._parts.append(name)

    def read_log(self, name: str) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._copy_log(name, file)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def _copy_log(self, name: str, target: IO[bytes]) -> None:
        """Reads parts before the log: a run that ends meanwhile has put them into it."""
        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(pool.map(self._get, self._part_names()))
        found = any(parts)
        try:
            fetch(f"{self._url}/{name}", target)
        except FileNotFoundError:
            if not found:
                raise
        target.seek(0)
        merged = {hash(line) for line in target} if found else set()  # of a run that was killed before it removed parts
        for part in parts:
            lines = [line for line in (part or b"").splitlines(keepends=True) if hash(line) not in merged]
            target.write(b"".join(lines))
        target.flush()

    @contextmanager
    def open_log(self, name: str) -> Iterator[None]:
        with exclusive_lock(self.folder, f"{name}.lock", self._url, temporary=True):
            self._clear({f"{name}.lock", _OWNER})
            with self._locked():
                self._abort_uploads()
                self._parts = self._part_names()
                numbers = [int(match[1]) for each in self._parts if (match := _PART_NAME.search(each))]
                self._session, self._log = max(numbers, default=0) + 1, name
                with suppress(FileNotFoundError), (self.folder / name).open("w+b") as file:
                    self._copy_log(name, file)
                yield
                if self._parts and self._lost is None:
                    upload(f"{self._url}/{name}", self.folder / name, OutputFailed)
                    with ThreadPoolExecutor(self.threads) as pool:
                        list(pool.map(self._remove, self._parts))
            self._clear({f"{name}.lock"})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock object, and shows every few seconds that this run is alive."""
        with suppress(FileNotFoundError):
            self._token = (self.folder / _OWNER).read_text()
        if not re.fullmatch("[0-9a-f]{16}", self._token):
            self._token = secrets.token_hex(8)
            write_atomically(self.folder / _OWNER, self._token.encode())
        self._lost = None
        self._acquire()
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(ended,), name="lock", daemon=True)
        beat.start()
        tries = 1  # where the run failed, the network may be away
        try:
            yield
            tries = TRIES
        finally:
            ended.set()
            beat.join()
            if self._lost is None:
                with suppress(CsmError):
                    self._remove(_LOCK, tries)

    def _acquire(self) -> None:
        """Creates the lock; takes one over that a dead run left. Raises UsageError where a run is alive."""
        content = self._lock_content(0)
        first: bytes | None = None
        since = time.monotonic()
        while True:
            with suppress(FileExistsError):
                self._put(_LOCK, content, OutputRefused, new=True)
                return
            held = self._get(_LOCK, OutputRefused)
            if held is None:
                continue
            if _owner(held).get("token") == self._token:  # of a run that was killed: its lock on the folder is free
                self._put(_LOCK, content, OutputRefused)
                return
            if first is None:
                first = held
                _LOG.warning(
                    "%s: locked by a run on %s; looking whether it is alive (up to %g s)",
                    self._url,
                    _owner(held).get("host", "another host"),
                    _STALE_SECONDS,
                )
            if held != first:
                host = _owner(held).get("host", "another host")
                raise UsageError(
                    f"{self._url} is in use by another run on {host}; wait for it to end, or choose another"
                )
            if time.monotonic() - since > _STALE_SECONDS:
                self._remove(_LOCK)
            time.sleep(1.0)

    def _lock_content(self, beat: int) -> bytes:
        return json.dumps(
            {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat}
        ).encode()

    def _beat(self, ended: threading.Event) -> None:
        beat = 0
        while not ended.wait(_BEAT_SECONDS):
            with suppress(CsmError):  # the network is away: the next one may succeed
                held = _owner(self._get(_LOCK) or b"{}")
                if held.get("token", self._token) != self._token:
                    self._lost = f"another run on {held.get('host', 'another host')}"
                    return
                beat += 1
                self._put(_LOCK, self._lock_content(beat), OutputFailed)

    def _abort_uploads(self) -> None:
        """Ends uploads in parts that killed runs left: nobody sees them, but they are stored."""
        system, path = filesystem(f"{self._url}/")
        if not hasattr(system, "call_s3"):
            return
        bucket, key, _ = system.split_path(path)
        try:
            found = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key.rstrip('/')}/")
            for each in found.get("Uploads", ()):
                system.call_s3("abort_multipart_upload", Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"])
        except Exception as problem:  # of rights that nothing else needs
            _LOG.debug("unfinished uploads are not removed: %s", problem)

    def _list(self, folder: str) -> list[str]:
        """Names of all files below a folder of the store."""
        url = f"{self._url}/{folder}".rstrip("/")
        system, path = filesystem(url)
        _, root = filesystem(self._url)
        try:
            found = attempt(OutputFailed, url, lambda: system.find(path))
        except FileNotFoundError:
            return []
        return [each.removeprefix(root).lstrip("/") for each in found]

    def _part_names(self) -> list[str]:
        return sorted(each for each in self._list(_PARTS) if _PART_NAME.fullmatch(each.removeprefix(f"{_PARTS}/")))

    def _put(self, name: str, data: bytes, failure: type[CsmError], new: bool = False) -> None:
        """Raises FileExistsError where it is to be new; failure."""
        url = f"{self._url}/{name}"
        system, path = filesystem(url)
        mode = {"mode": "create"} if new else {}
        attempt(failure, url, lambda: system.pipe_file(path, data, **mode))

    def _get(self, name: str, failure: type[CsmError] = InputError) -> bytes | None:
        url = f"{self._url}/{name}"
        system, path = filesystem(url)
        try:
            data: bytes = attempt(failure, url, lambda: system.cat_file(path))
        except FileNotFoundError:
            return None
        return data

    def _remove(self, name: str, tries: int = TRIES) -> None:
        url = f"{self._url}/{name}"
        system, path = filesystem(url)
        with suppress(FileNotFoundError):
            attempt(OutputFailed, url, lambda: system.rm_file(path), tries)

    def _clear(self, spared: set[str]) -> None:
        """Removes what waits in the folder."""
        for each in self.folder.iterdir():
            if each.name not in spared:
                with suppress(OSError):
                    shutil.rmtree(each) if each.is_dir() else each.unlink()


def _owner(lock: bytes) -> dict[str, Any]:
    try:
        found = json.loads(lock)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
