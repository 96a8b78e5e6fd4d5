"""Paths: the user's own folders, `~`, and the name of a file behind links."""

from __future__ import annotations

import os
from pathlib import Path

from csm_cli.errors import ConfigInvalid, OutputRefused

HOME_VARIABLE = "CSM_HOME"
CONFIG_NAME = "config.toml"


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
