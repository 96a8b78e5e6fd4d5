"""Files of any kind: where one cannot be is said before it is made, and it appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile

from csm_cli.errors import OutputFailed, OutputRefused

FOLDERS_KEPT = 4096  # so that a batch with a folder for each item does not grow


def check_writable(path: Path, clobber: bool = True) -> None:
    """Refuses a file that could not be written, before any work is done for it.

    Raises:
        OutputRefused: a directory or device, a folder that cannot be made or written to, or an existing file where
            `clobber` is false.
    """
    try:
        _check_place(path, clobber)
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be created ({error.strerror}); choose another name") from error


def _check_place(path: Path, clobber: bool) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # exists() and is_dir() keep silent about a circle of links
    if path.is_dir():
        raise OutputRefused(f"{path}: is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise OutputRefused(f"{path}: is not a regular file; write to - and redirect it")
    if path.exists() and not clobber:
        raise OutputRefused(f"{path}: exists already; leave out --no-clobber to replace it")
    folder = next(parent for parent in path.resolve().parents if parent.exists())  # through a link, as it is written
    if not folder.is_dir():
        raise OutputRefused(f"{path}: {folder} is not a folder")
    try:
        _try(folder)
    except OSError as error:
        reason = f"the folder {folder} cannot be written to ({error.strerror})"
        raise OutputRefused(f"{path}: {reason}; choose another folder") from error


@lru_cache(FOLDERS_KEPT)
def _try(folder: Path) -> None:
    """Makes a file that is gone at once: permissions do not tell of /proc, nor what root may on a read-only disk.

    A folder that could be written to is not tried again, for a batch has thousands of files in it.
    """
    with TemporaryFile(dir=folder, prefix=".csm-"):
        pass


def resolved_name(path: Path) -> str:
    """A name that two paths share only where they lead to one place, through links and `..`."""
    return os.path.normcase(os.path.realpath(path))


def expand_path(name: str) -> Path:
    """The path of an output as somebody named it, `~` expanded.

    Raises:
        OutputRefused: the home of nobody.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise OutputRefused(f"{name}: there is no such user's home; name another folder") from error


def write_atomically(path: Path, data: bytes, flush: bool = True) -> None:
    """Puts `data` at `path` through a temporary file beside it, so that no reader sees half of it.

    flush: it is on the disk when this returns; else the caller sees to that.

    Raises:
        OutputRefused: the folder cannot be made or written to.
        OutputFailed: the disk is full or failed.
    """
    write_together([(path, data)], flush)


def write_together(files: Iterable[tuple[Path, bytes]], flush: bool = True) -> None:
    """Puts all files in their places once every one has been written whole; raises as `write_atomically` does.

    One file's bytes are asked for when those before it are on the disk, so that only one is held at a time.
    """
    with ExitStack() as temporaries:
        staged = [temporaries.enter_context(_staged(path, data, flush)) for path, data in files]
        for path, temporary, target in staged:
            try:
                temporary.replace(target)
            except OSError as error:
                raise OutputFailed(f"{path}: could not be replaced ({error.strerror}); choose another name") from error


@contextmanager
def _staged(path: Path, data: bytes, flush: bool) -> Iterator[tuple[Path, Path, Path]]:
    """`path`, a file that holds `data` beside it, and where that belongs; it goes where it is not moved there.

    So do folders that were made for it.
    """
    target = path.resolve()  # through a link, not over it
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    made: list[Path] = []
    try:
        try:
            made += (folder for folder in target.parents if not folder.exists())
            target.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("xb")
        except OSError as error:
            raise OutputRefused(f"{path}: cannot be created ({error.strerror}); choose another folder") from error
        try:
            with file:
                file.write(data)
                file.flush()
                if flush:
                    os.fsync(file.fileno())
        except OSError as error:
            raise OutputFailed(f"{path}: could not be written ({error.strerror}); nothing was left behind") from error
        yield path, temporary, target
    finally:
        with suppress(OSError):  # of folders: there is something in them
            temporary.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
