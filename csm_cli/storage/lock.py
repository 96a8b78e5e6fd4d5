"""A folder for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from csm_cli.errors import OutputRefused, UsageError


@contextmanager
def exclusive_lock(folder: Path, name: str = ".lock", shown: Path | None = None) -> Iterator[None]:
    """Keeps others from the folder; the system lets go of it when the process ends, in whatever way.

    Missing folders are made; a folder that nothing was put into is gone again. name: of the file in it that is locked;
    shown: what the user calls the folder.

    Raises:
        UsageError: another run is at this folder. OutputRefused: it cannot be written to.
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
        raise OutputRefused(
            f"{shown or folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        yield
    finally:
        if made:
            _remove_empty(folder, name)
        lock.release()


def _remove_empty(folder: Path, name: str) -> None:
    """Removes a folder that holds nothing but its lock, which others may still wait for, but not get."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [name]:
            (folder / name).unlink()
            folder.rmdir()
