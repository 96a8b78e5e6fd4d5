"""Where a user's own things lie: saved voices, codes and configuration. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

from csm_cli.errors import ConfigInvalid

VARIABLE = "CSM_HOME"
CONFIG = "config.toml"


def user_data_folder() -> Path:
    """$CSM_HOME, else the system's folder for a user's data.

    Raises:
        ConfigInvalid: the variable names the home of nobody.
    """
    own = os.environ.get(VARIABLE)
    if own:
        try:
            return Path(own).expanduser()
        except RuntimeError as problem:
            raise ConfigInvalid(f"{VARIABLE}={own}: there is no such user; name a folder") from problem
    import platformdirs

    return platformdirs.user_data_path("csm", appauthor=False)


def user_config_file() -> Path:
    """The user's config.toml, whether there is one or not: in $CSM_HOME, else in the system's folder."""
    if os.environ.get(VARIABLE):
        return user_data_folder() / CONFIG
    import platformdirs

    return platformdirs.user_config_path("csm", appauthor=False) / CONFIG
