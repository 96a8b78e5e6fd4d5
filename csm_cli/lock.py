"""A folder for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from csm_cli.errors import OutputRefused, UsageError


@contextmanager
def locked(folder: Path, name: str = ".lock", shown: Path | None = None) -> Iterator[None]:
    """Keeps others from the folder; the system lets go of it when the process ends, in whatever way.

    Missing folders are made. name: of the file in it that is locked; shown: what the user calls the folder.

    Raises:
        UsageError: another run is at this folder. OutputRefused: it cannot be written to.
    """
    lock = FileLock(folder / name, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{shown or folder} is in use by another run; wait for it to end, or choose another"
        ) from error
    except OSError as error:
        raise OutputRefused(f"{shown or folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()
