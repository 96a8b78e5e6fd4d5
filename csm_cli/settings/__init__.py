"""The one definition of every value a person can set, and where it is set besides flags and scripts. No torch here."""

from csm_cli.settings.fields import GENERATION, SETTINGS, Setting, Value, setting
from csm_cli.settings.levels import PROJECT_FILE, Configuration, ResolvedSetting, read_configuration, validate

__all__ = [
    "GENERATION",
    "PROJECT_FILE",
    "SETTINGS",
    "Configuration",
    "ResolvedSetting",
    "Setting",
    "Value",
    "read_configuration",
    "setting",
    "validate",
]
