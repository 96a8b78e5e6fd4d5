"""Atomic writes and locks: a file or a folder appears complete or not at all, and is checked before work starts."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from filelock import FileLock, Timeout

from csm_cli.errors import OutputFailed, OutputRefused, UsageError

MAX_CACHED_FOLDERS = 4096  # bounds memory where a batch has a folder for each item
_TEMP_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")


def check_writable(path: Path, clobber: bool = True) -> None:
    """Refuses a file that could not be written, before any work is done for it.

    Raises:
        OutputRefused: a directory or device, a folder that cannot be made or written to, or an existing file where
            `clobber` is false.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises on a circle of links, which exists() and is_dir() do not
        if path.is_dir():
            raise OutputRefused(f"{path}: is a directory; name a file in it")
        if path.exists() and not path.is_file():
            raise OutputRefused(f"{path}: is not a regular file; write to - and redirect it")
        if path.exists() and not clobber:
            raise OutputRefused(f"{path}: exists already; leave out --no-clobber to replace it")
        folder = next(parent for parent in path.resolve().parents if parent.exists())  # where a link leads
        if not folder.is_dir():
            raise OutputRefused(f"{path}: {folder} is not a folder")
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be created ({error.strerror}); choose another name") from error
    try:
        _write_probe(folder)
    except OSError as error:
        reason = f"the folder {folder} cannot be written to ({error.strerror})"
        raise OutputRefused(f"{path}: {reason}; choose another folder") from error


@lru_cache(MAX_CACHED_FOLDERS)
def _write_probe(folder: Path) -> None:
    """Creates an unnamed file: permission bits say nothing about /proc or a read-only disk. Cached where it worked."""
    with TemporaryFile(dir=folder, prefix=".csm-"):
        pass


class _StagedFile:
    """A temporary file beside `path`, open for writing. On exit it is removed unless published, with folders made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._target = path.resolve()  # a link is written through, not replaced
        self._temporary = self._target.with_name(f".{secrets.token_hex(8)}.tmp")
        self._made: list[Path] = []

    def __enter__(self) -> _StagedFile:
        try:
            self._made += (folder for folder in self._target.parents if not folder.exists())
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = self._temporary.open("xb")
        except OSError as error:
            self._remove()
            raise OutputRefused(f"{self._path}: cannot be created ({error.strerror}); choose another folder") from error
        return self

    @contextmanager
    def writing(self, flush: bool) -> Iterator[None]:
        """Closes the file after the block; with `flush` its content is on the disk then. OSError -> OutputFailed."""
        try:
            with self.file:
                yield
                self.file.flush()
                if flush:
                    os.fsync(self.file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise OutputFailed(f"{self._path}: could not be written ({reason}); nothing was left behind") from error

    def publish(self) -> None:
        try:
            self._temporary.replace(self._target)
        except OSError as error:
            raise OutputFailed(
                f"{self._path}: could not be replaced ({error.strerror}); choose another name"
            ) from error

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.file.close()
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):  # folders that hold something stay
            self._temporary.unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()


@contextmanager
def atomic_file(path: Path, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends without an exception.

    flush: its content is on the disk afterwards.

    Raises:
        OutputRefused: the folder cannot be made or written to.
        OutputFailed: the disk is full or failed; also any other OSError in the block.
    """
    with _StagedFile(path) as staged:
        with staged.writing(flush):
            yield staged.file
        staged.publish()


def write_atomically(path: Path, data: bytes, flush: bool = True) -> None:
    """Puts `data` at `path`; no reader ever sees half of it. flush, Raises: as `atomic_file`."""
    write_together([(path, data)], flush)


def write_together(files: Iterable[tuple[Path, bytes]], flush: bool = True) -> None:
    """Puts all files in place once every one is written completely; raises as `atomic_file`.

    The content of a file is requested after the one before it is written, so that one at a time is in memory.
    """
    with ExitStack() as stack:
        staged = []
        for path, data in files:
            staged.append(stack.enter_context(_StagedFile(path)))
            with staged[-1].writing(flush):
                staged[-1].file.write(data)
        for each in staged:
            each.publish()


def remove_temp_files(folder: Path) -> None:
    """Removes temporary files that a killed process left in `folder`."""
    for path in folder.glob(".*.tmp"):
        if _TEMP_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder `NAME.new`, which takes the place of `folder` when the block ends without an exception.

    Raises:
        OutputRefused: it cannot be created.
        OutputFailed: its content did not fit, or it could not be put in place; `folder` is as before.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    try:
        recover_folder(folder)
        fresh.mkdir(parents=True)
    except OSError as error:
        raise OutputRefused(f"{folder}: cannot be created ({error.strerror}); choose another folder") from error
    try:
        yield fresh
        for path in fresh.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            folder.replace(old)
        fresh.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputFailed(
            f"{folder}: could not be written ({error.strerror or error}); make room and retry"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Undoes a killed `replace_folder`: restores the previous content and removes what was half-written."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(folder.with_name(folder.name + ".new"), ignore_errors=True)
    if old.exists() and not folder.exists():
        old.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder at once: readers see all of it or nothing. Raises OSError."""
    gone = folder.with_name(f".{secrets.token_hex(8)}.old")
    folder.rename(gone)
    shutil.rmtree(gone)


@contextmanager
def exclusive_lock(folder: Path, name: str = ".lock", shown: Path | None = None) -> Iterator[None]:
    """Locks a folder for this process; the system releases the lock when the process ends in any way.

    Missing folders are made; a folder that stays empty is removed again. name: of the lock file in it; shown: how
    messages name the folder.

    Raises:
        UsageError: another process holds the lock. OutputRefused: the folder cannot be written to.
    """
    lock = FileLock(folder / name, timeout=0)
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{shown or folder} is in use by another run; wait for it to end, or choose another"
        ) from error
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise OutputRefused(f"{shown or folder}: {reason}; choose another folder") from error
    try:
        yield
    finally:
        if made:
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [name]:
                    (folder / name).unlink()  # waiting processes lose the lock file, which they would not get anyway
                    folder.rmdir()
        lock.release()
