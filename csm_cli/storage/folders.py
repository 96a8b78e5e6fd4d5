"""Folders that csm writes as a whole or fills: marked as its own, replaced at once, never at the cost of other files.

A marker, `.csm-folder.json`, names the kind of a folder and, where csm wrote the whole of it, its files. A folder with
other files in it is refused. Leftovers of killed processes have names of their own and are removed under a lock.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csm_cli.errors import OutputFailed, OutputRefused, UsageError
from csm_cli.storage.files import MARKER, exclusive_lock, write_atomically
from csm_cli.storage.untrusted import read_json

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.(?P<state>new|old|gone)", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)
_RENAME_SWAP = 2  # of macOS's renamex_np(2)


@contextmanager
def replace_folder(
    folder: Path, kind: str, force: bool = False, known: Collection[str] = (), wait: float = 0.0
) -> Iterator[Path]:
    """A new, empty folder, which takes the place of `folder` when the block ends without an exception.

    kind: what csm writes there, such as "checkpoint"; only a folder of this kind without other files is replaced.
    force: replaces any folder. known: file names that also count as csm's own in a folder without a marker.
    wait: seconds to wait for another process that replaces the same folder.

    Raises:
        OutputRefused: it cannot be created, is a file, or holds files that csm did not write.
        UsageError: another process replaces it.
        OutputFailed: its content did not fit, or it could not be put in place; `folder` is as before.
    """
    shown, folder = folder, folder.resolve()
    with exclusive_lock(folder.parent, f".{folder.name}.lock", shown, wait, temporary=True):
        recover_folder(folder)
        check_replaceable(folder, kind, force, known, shown)
        fresh = _sibling(folder, "new")
        try:
            fresh.mkdir()
        except OSError as error:
            raise OutputRefused(f"{shown}: cannot be created ({error.strerror}); choose another folder") from error
        try:
            yield fresh
            _write_marker(fresh, kind=kind, files=sorted(_files(fresh)))
            for path in fresh.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
            _put_in_place(fresh, folder)
        except OSError as error:
            reason = f"could not be written ({error.strerror or error})"
            raise OutputFailed(f"{shown}: {reason}; make room and retry") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def check_replaceable(
    folder: Path, kind: str, force: bool = False, known: Collection[str] = (), shown: Path | None = None
) -> None:
    """Refuses to replace or remove a folder that holds anything but what csm wrote there as `kind`.

    Raises:
        OutputRefused: names the first foreign file.
    """
    shown = shown or folder
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputRefused(f"{shown} is a file; name a folder")
    marker = read_marker(folder)
    own = {MARKER, *known}
    if marker.get("kind") == kind and isinstance(marker.get("files"), list):
        own.update(name for name in marker["files"] if isinstance(name, str))
    foreign = next((name for name in _files(folder) if name not in own), None)
    if foreign is not None and not force:
        hint = "name a new folder, or move the file away"
        raise OutputRefused(f"{shown} holds {foreign}, which csm did not write there as a {kind}; {hint}")


def claim_folder(folder: Path, kind: str, is_own: re.Pattern[str]) -> None:
    """Marks a folder as csm's before files are written into it; files of other names stay as they are.

    is_own: matches the names of the files and folders that csm writes there.

    Raises:
        OutputRefused: the folder is not marked and holds such a name, which would be replaced; or it cannot be written.
    """
    if read_marker(folder).get("kind") == kind:
        return
    try:
        foreign = next((name for name in sorted(os.listdir(folder)) if is_own.fullmatch(name)), None)  # noqa: PTH208
    except FileNotFoundError:
        foreign = None
    except OSError as error:
        raise OutputRefused(f"{folder}: cannot be read ({error.strerror}); choose another folder") from error
    if foreign is not None:
        reason = f"holds {foreign}, which csm did not write there as {kind}"
        raise OutputRefused(f"{folder} {reason}; name a new folder, or move the file away")
    _write_marker(folder, kind=kind)


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of a folder; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        marker = read_json(folder / MARKER)
        if isinstance(marker, dict):
            return marker
    return {}


def remove_folder(folder: Path) -> None:
    """Removes a folder at once: readers see all of it or nothing. Raises OSError."""
    gone = _sibling(folder, "gone")
    folder.rename(gone)
    with suppress(FileNotFoundError):  # another process may remove it as a leftover at the same time
        shutil.rmtree(gone)


def recover_folder(folder: Path) -> None:
    """Restores the content of a folder whose replacement was killed, and removes what was half-written."""
    for leftover, match in _leftovers(folder.parent):
        if match["name"] != folder.name:
            continue
        if match["state"] == "old" and not os.path.lexists(folder):
            leftover.rename(folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def recover_folders(parent: Path) -> None:
    """Restores every folder in `parent` whose replacement was killed; those of running processes are left alone."""
    for name in sorted({match["name"] for _, match in _leftovers(parent)}):
        with suppress(OSError, UsageError, OutputRefused), exclusive_lock(parent, f".{name}.lock", temporary=True):
            recover_folder(parent / name)


def _leftovers(parent: Path) -> list[tuple[Path, re.Match[str]]]:
    try:
        names = sorted(os.listdir(parent))  # noqa: PTH208 (names only)
    except OSError:
        return []
    return [(parent / name, match) for name in names if (match := _LEFTOVER.fullmatch(name))]


def _sibling(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.{state}")


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Renames `fresh` to `folder`; what `folder` held is removed. Raises OSError, with `folder` as before."""
    if not os.path.lexists(folder):
        fresh.rename(folder)
        return
    if _exchange(fresh, folder):  # the caller removes what `fresh` holds now
        return
    old = _sibling(folder, "old")
    try:
        folder.rename(old)
        fresh.rename(folder)
    except BaseException:  # an interrupt between the two too
        if os.path.lexists(old) and not os.path.lexists(folder):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot."""
    if os.name != "posix":
        return False
    libc = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):  # macOS
        return bool(libc.renamex_np(*names, _RENAME_SWAP) == 0)
    return False


def _files(folder: Path) -> Iterator[str]:
    """The files below a folder, as relative names with `/`, and links; lock and temporary files are left out."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        for name in (*sorted(names), *links):
            if name != MARKER and not name.endswith((".lock", ".tmp")):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _write_marker(folder: Path, **facts: Any) -> None:
    marker = {"written_by": "csm", **facts}
    write_atomically(folder / MARKER, (json.dumps(marker, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
