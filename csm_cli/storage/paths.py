"""Paths: the user's own folders, `~`, names behind links, and names that come from data."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

from csm_cli.errors import ConfigInvalid, InputError, OutputRefused

HOME_VARIABLE = "CSM_HOME"
CONFIG_NAME = "config.toml"
_MAX_NAME_BYTES = 240  # file systems take 255; csm adds suffixes
_IMPOSSIBLE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # in the names of files on some system
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)


def user_data_folder() -> Path:
    """$CSM_HOME, else the system's folder for user data: saved voices and their codes.

    Raises:
        ConfigInvalid: the variable names the home of an unknown user.
    """
    own = os.environ.get(HOME_VARIABLE)
    if own:
        try:
            return Path(own).expanduser()
        except RuntimeError as error:
            raise ConfigInvalid(f"{HOME_VARIABLE}={own}: no such user; name a folder") from error
    import platformdirs

    return platformdirs.user_data_path("csm", appauthor=False)


def user_config_file() -> Path:
    """The path of the user's config.toml, which need not exist: in $CSM_HOME, else in the system's config folder."""
    if os.environ.get(HOME_VARIABLE):
        return user_data_folder() / CONFIG_NAME
    import platformdirs

    return platformdirs.user_config_path("csm", appauthor=False) / CONFIG_NAME


def expand_path(name: str) -> Path:
    """The path of an output with `~` expanded.

    Raises:
        OutputRefused: the home of an unknown user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise OutputRefused(f"{name}: no such user; name another folder") from error


def resolved_name(path: Path) -> str:
    """A name that two paths share exactly where they lead to the same place, through links and `..`."""
    return os.path.normcase(os.path.realpath(path))


def portable_name(path: Path) -> str:
    """A name that two paths share where some system takes them for one: it ignores case and Unicode composition."""
    return portable_form(resolved_name(path))


def portable_form(name: str) -> str:
    """`portable_name` of a resolved name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def name_problem(name: str) -> str:
    """Why `name` cannot be a file or folder on every system, as the end of a sentence; empty where it can."""
    if found := _IMPOSSIBLE.search(name):
        return f"has the character {found[0]!r}"
    if not name.strip(". ") or name.endswith((".", " ")):
        return "is empty, or ends with a dot or a space"
    if _RESERVED.fullmatch(name):
        return "is reserved on Windows"
    size = len(name.encode("utf-8", "surrogatepass"))
    return f"has {size} bytes, of at most {_MAX_NAME_BYTES}" if size > _MAX_NAME_BYTES else ""


def relative_parts(name: object) -> tuple[str, ...]:
    """The parts of a relative path that a file holds.

    Raises:
        InputError: no text, or absolute, empty, or with a part `..`, on any system.
    """
    if isinstance(name, str) and name and "\0" not in name:
        windows = PureWindowsPath(name)
        if not windows.drive and not windows.root and ".." not in windows.parts:
            return Path(name).parts
    raise InputError(f"{name!r} is not a path inside its folder")


def contained_path(folder: Path, name: object) -> Path:
    """The path `name` below `folder`, where `name` comes from a file that others may have written.

    Raises:
        InputError: it leads out of the folder, also through a link; or as `relative_parts`.
    """
    path = folder.joinpath(*relative_parts(name))
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(f"{name!r} leads out of {folder} through a link")
    return path
