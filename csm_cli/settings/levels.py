"""The levels below flags and scripts: CSM_* variables, then ./csm.toml, then the user's config.toml."""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from csm_cli.errors import ConfigInvalid, CsmError, UsageError
from csm_cli.settings.fields import GENERATION, SETTINGS, Value
from csm_cli.settings.limits import MAX_CONFIG_BYTES, MAX_SHOWN_CHARS
from csm_cli.storage.paths import user_config_file
from csm_cli.storage.untrusted import read_regular
from csm_cli.types import GenerationOptions

PROJECT_FILE = Path("csm.toml")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedSetting:
    """A value and the variable or file that set it."""

    value: Value | None
    source: str


Level = Mapping[str, ResolvedSetting]


@dataclass(frozen=True)
class Configuration:
    """What the environment, ./csm.toml and the user's config.toml set, each on its own, the highest level first."""

    levels: tuple[Level, ...] = ()

    @property
    def merged(self) -> dict[str, ResolvedSetting]:
        """Each setting by the highest level that has it."""
        return {name: each for level in reversed(self.levels) for name, each in level.items()}

    @property
    def generation(self) -> GenerationOptions:
        merged = GenerationOptions()
        for level in self.levels:
            values = {name: each.value for name, each in level.items() if name in GENERATION}
            merged = merged.over(GenerationOptions(**values))  # type: ignore[arg-type]  # validated
        return merged


def read_configuration(flags: Collection[str] = ()) -> Configuration:
    """Everything that is set; an empty variable counts as unset, as does one that a flag of these names overrides.

    Raises:
        ConfigInvalid: a file cannot be read, is not TOML, has an unknown key or an impossible value; or
            ./csm.toml has one that only the user may set.
        UsageError: a variable has an impossible value.
    """
    return Configuration((_environment(flags), _project(), _file(user_config_file())))


def validate(
    values: Mapping[str, object], label: Callable[[str], str], error: type[CsmError] = UsageError
) -> dict[str, Value]:
    """Settings by name, converted to their types.

    label: how an error names a setting.

    Raises:
        UsageError, or `error`: an impossible value.
    """
    if not values:
        return {}  # and pydantic, which takes its time to load, is not needed
    from pydantic import ValidationError

    from csm_cli.settings.model import SettingsModel

    try:
        return SettingsModel.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as problem:
        name = str(problem.errors()[0]["loc"][0])
        raise error(f"{label(name)} takes {SETTINGS[name].expected}, not {values[name]!r:.{MAX_SHOWN_CHARS}}") from None


def _environment(flags: Collection[str]) -> Level:
    found = {name: os.environ.get(_variable(name)) for name in SETTINGS if name not in flags}
    values = validate({name: text for name, text in found.items() if text}, _variable)
    return {name: ResolvedSetting(value, _variable(name)) for name, value in values.items()}


def _variable(name: str) -> str:
    return f"CSM_{name.upper()}"


def _project() -> Level:
    """./csm.toml, which comes with a folder that may be somebody else's: it sets how something is spoken, no more.

    What it says of the network counts only where it forbids it.
    """
    level = dict(_file(PROJECT_FILE))
    if name := next((name for name in level if SETTINGS[name].user_only), None):
        flag = f"--{name.replace('_', '-')}"
        raise ConfigInvalid(
            f"{PROJECT_FILE}: {name} cannot be set by the file of a folder, which may be somebody else's; "
            f"move it to {user_config_file()}, or give {flag} or {_variable(name)}"
        )
    if "offline" in level and not level["offline"].value:
        _LOG.warning("%s: offline = false is ignored; it can only forbid the network", PROJECT_FILE)
        del level["offline"]
    return level


def _file(path: Path) -> Level:
    try:
        table = tomllib.loads(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except RecursionError as problem:
        raise ConfigInvalid(f"{path}: has too many nested brackets; fix or remove it") from problem
    except (OSError, ValueError) as problem:
        raise ConfigInvalid(f"{path}: {getattr(problem, 'strerror', None) or problem}; fix or remove it") from problem
    for name in table:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name[:MAX_SHOWN_CHARS].replace("-", "_"), SETTINGS, n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(SETTINGS)}"
            raise ConfigInvalid(f"{path}: unknown setting {name!r:.{MAX_SHOWN_CHARS}}; {hint}")
    values = validate(table, lambda name: f"{path}: {name}", ConfigInvalid)
    return {name: ResolvedSetting(value, str(path)) for name, value in values.items()}
