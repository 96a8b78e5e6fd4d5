"""Atomic writes and locks: a file appears complete or not at all, and is checked before work starts."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from filelock import FileLock, Timeout

from csm_cli.errors import OutputFailed, OutputRefused, UsageError

try:
    import fcntl
except ImportError:  # Windows, where a file that a process has open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

FileContent = bytes | Callable[[BinaryIO], object]
"""What is put into a file: its bytes, or a function that writes them, so that they are never all in memory."""
_MAX_CACHED_FOLDERS = 4096  # bounds memory where a batch has a folder for each item
MARKER = ".csm-folder.json"  # marks a folder as csm's own, see `folders`
_TEMP_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")


def check_writable(path: Path, clobber: bool = True) -> None:
    """Refuses a file that could not be written, before any work is done for it.

    Raises:
        OutputRefused: a directory or device, a folder that cannot be made or written to, or an existing file where
            `clobber` is false.
    """
    try:
        mode = 0
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise OutputRefused(f"{path}: is a directory; name a file in it")
        if mode and not stat.S_ISREG(mode):
            raise OutputRefused(f"{path}: is not a regular file; write to - and redirect it")
        if mode and not clobber:
            raise OutputRefused(f"{path}: exists already; leave out --no-clobber to replace it")
        folder = path.parent
        if path.is_symlink() or not folder.is_dir():
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


@lru_cache(_MAX_CACHED_FOLDERS)
def _write_probe(folder: Path) -> None:
    """Creates an unnamed file: permission bits say nothing about /proc or a read-only disk. Cached where it worked."""
    with TemporaryFile(dir=folder, prefix=".csm-"):
        pass


class _StagedFile:
    """A temporary file beside `path`, open for writing. On exit it is removed unless published, with folders made.

    A file that is replaced passes on its permissions; a new one gets those of the umask.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        is_plain = not path.is_symlink() and ".." not in path.parts
        self._target = path if is_plain else path.resolve()  # a link is written through, not replaced
        self._temporary = self._target
        self._made: list[Path] = []

    def __enter__(self) -> _StagedFile:
        folder = self._target.parent
        try:
            self._made += takewhile(lambda each: not each.exists(), self._target.parents)
            folder.mkdir(parents=True, exist_ok=True)
            _remove_temp_files_once(folder)
            self.file: BinaryIO = self._open_temp_file(folder)
            with suppress(FileNotFoundError):
                self._temporary.chmod(stat.S_IMODE(self._target.stat().st_mode))
        except OSError as error:
            self._remove()
            raise OutputRefused(f"{self._path}: cannot be created ({error.strerror}); choose another folder") from error
        return self

    def _open_temp_file(self, folder: Path) -> BinaryIO:
        """A new file, locked until it is closed: `remove_temp_files` of other processes leaves it alone."""
        while True:
            self._temporary = folder / f".{secrets.token_hex(8)}.tmp"
            file = self._temporary.open("x+b")
            if _lock_descriptor(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # another process took it for a stale one before it was locked

    @contextmanager
    def writing(self, flush: bool) -> Iterator[None]:
        """Hands over what was written; with `flush` it is on the disk after the block. OSError -> OutputFailed."""
        try:
            yield
            self.file.flush()
            if flush:
                os.fsync(self.file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise OutputFailed(f"{self._path}: could not be written ({reason}); nothing was left behind") from error

    def publish(self) -> None:
        """Until then the file stays open, and so locked: others remove a temporary file that nobody has locked."""
        try:
            if os.name == "nt":  # which renames no open file
                self.file.close()
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
            if self._temporary != self._target:
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


def write_atomically(path: Path, data: FileContent, flush: bool = True) -> None:
    """Puts `data` at `path`; no reader ever sees half of it. flush, Raises: as `atomic_file`."""
    write_together([(path, data)], flush)


def write_together(files: Iterable[tuple[Path, FileContent]], flush: bool = True) -> None:
    """Puts all files in place once every one is written completely; raises as `atomic_file`.

    The content of a file is requested after the one before it is written, so that one at a time is in memory.
    """
    with ExitStack() as stack:
        staged = []
        for path, data in files:
            staged.append(stack.enter_context(_StagedFile(path)))
            with staged[-1].writing(flush):
                if isinstance(data, bytes):
                    staged[-1].file.write(data)
                else:
                    data(staged[-1].file)
        for each in staged:
            each.publish()


def remove_temp_files(folder: Path) -> None:
    """Removes temporary files in `folder` that killed processes left; those of running processes are locked."""
    with suppress(OSError):
        for name in filter(_TEMP_NAME.fullmatch, os.listdir(folder)):  # noqa: PTH208 (names only)
            path = folder / name
            if path.is_symlink() or not path.is_file():
                continue
            with suppress(OSError), path.open("rb+") as file:
                if _lock_descriptor(file.fileno()):
                    path.unlink()


_remove_temp_files_once = lru_cache(_MAX_CACHED_FOLDERS)(remove_temp_files)


def _lock_descriptor(descriptor: int) -> bool | None:
    """Locks an open file until it is closed. False: another process has it; None: this file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def exclusive_lock(
    folder: Path, name: str = ".lock", shown: Path | str | None = None, wait: float = 0.0, temporary: bool = False
) -> Iterator[None]:
    """Locks a folder for this process; the system releases the lock when the process ends in any way.

    Missing folders are made; a folder that stays empty is removed again. name: of the lock file in it; shown: how
    messages name the folder. wait: seconds to wait for another process. temporary: the lock file is removed at the end.

    Raises:
        UsageError: another process holds the lock. OutputRefused: the folder cannot be written to.
    """
    lock = FileLock(folder / name, timeout=wait, poll_interval=0.02)
    made = not folder.exists()
    try:
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
        unused = False
        with suppress(OSError):  # a process that waits notices that the file is gone, and makes another
            unused = made and {path.name for path in folder.iterdir()} <= {name, MARKER}
            if temporary or unused:
                (folder / name).unlink()
            if unused:
                (folder / MARKER).unlink(missing_ok=True)
        lock.release()
        if unused:  # after the release: some file systems keep a removed file's name while it is open
            with suppress(OSError):
                folder.rmdir()
