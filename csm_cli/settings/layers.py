"""The layers below the flags: CSM_* variables, then ./csm.toml, then the user's config.toml."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm_cli.errors import ConfigInvalid
from csm_cli.settings.keys import ALL_KEYS, GENERATION_KEYS, MODEL_KEYS, Value, parse
from csm_cli.storage.paths import user_config_file
from csm_cli.types import GenerationOptions

PROJECT_FILE = Path("csm.toml")


@dataclass(frozen=True)
class ResolvedSetting:
    """A value and the variable or file that set it."""

    value: Value
    source: str


def read_settings() -> dict[str, ResolvedSetting]:
    """Every key that is set, by the highest layer that sets it; an empty variable counts as unset.

    Raises:
        ConfigInvalid: a file cannot be read, is no TOML, or holds a key there is not; says which is near.
        UsageError: an impossible value.
    """
    return _file(user_config_file()) | _file(PROJECT_FILE) | _environment()


def options(settings: Mapping[str, ResolvedSetting]) -> GenerationOptions:
    """The generation options among the settings."""
    values: dict[str, Any] = {name: settings[name].value for name in GENERATION_KEYS if name in settings}
    return GenerationOptions(**values)


def defaults(settings: Mapping[str, ResolvedSetting]) -> dict[str, Value]:
    """What stands in for flags that are not given: the keys that no script can set."""
    return {name: settings[name].value for name in MODEL_KEYS if name in settings}


def _environment() -> dict[str, ResolvedSetting]:
    found = {name: (f"CSM_{name.upper()}", os.environ.get(f"CSM_{name.upper()}")) for name in ALL_KEYS}
    return {
        name: ResolvedSetting(parse(name, text, variable), variable) for name, (variable, text) in found.items() if text
    }


def _file(path: Path) -> dict[str, ResolvedSetting]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise ConfigInvalid(f"{path}: {getattr(problem, 'strerror', None) or problem}; mend or remove it") from problem
    for name in table:
        if name not in ALL_KEYS:
            raise ConfigInvalid(f"{path}: there is no {name!r}; {_near(name)}")
    return {name: ResolvedSetting(_read(path, name, value), str(path)) for name, value in table.items()}


def _read(path: Path, name: str, value: object) -> Value:
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise ConfigInvalid(f"{path}: {name} takes {ALL_KEYS[name].expected}, not a table, list or date")
    return parse(name, text, f"{path}: {name}")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), ALL_KEYS, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ALL_KEYS)}"
