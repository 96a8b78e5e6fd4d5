"""Every limit on configuration files, and why."""

from __future__ import annotations

MAX_CONFIG_BYTES = 65_536  # of csm.toml and config.toml, which have 20 lines; a TOML parser is quadratic in places
MAX_SHOWN_CHARS = 100  # of a wrong value in a message
