"""What is set outside of a command line: CSM_* variables, ./csm.toml and the user's config.toml. No torch here."""

from csm_cli.settings.keys import ALL_KEYS, GENERATION_KEYS, MODEL_KEYS, json_schema, parse
from csm_cli.settings.layers import PROJECT_FILE, ResolvedSetting, defaults, options, read_settings

__all__ = [
    "ALL_KEYS",
    "GENERATION_KEYS",
    "MODEL_KEYS",
    "PROJECT_FILE",
    "ResolvedSetting",
    "defaults",
    "json_schema",
    "options",
    "parse",
    "read_settings",
]
