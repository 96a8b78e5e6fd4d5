"""What is set outside of a command line: CSM_* variables, ./csm.toml and the user's config.toml. No torch here."""

from csm_cli.settings.keys import GENERATION, KEYS, MODEL, json_schema, parse
from csm_cli.settings.layers import PROJECT, Setting, defaults, options, read_settings

__all__ = [
    "GENERATION",
    "KEYS",
    "MODEL",
    "PROJECT",
    "Setting",
    "defaults",
    "json_schema",
    "options",
    "parse",
    "read_settings",
]
