"""Scripts from plain data to YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def script_yaml(data: Mapping[str, Any]) -> str:
    """A script as YAML, with one line for each speaker and turn."""
    import yaml

    def one_line(fields: Mapping[str, Any], flow_style: bool | None) -> str:
        text: str = yaml.safe_dump(
            fields, default_flow_style=flow_style, sort_keys=False, allow_unicode=True, width=math.inf
        )
        return text.strip()

    lines = [one_line({name: data[name]}, False) for name in ("csm", "title") if name in data]
    lines += ["speakers:", *(f"  {one_line({name: entry}, None)}" for name, entry in data["speakers"].items())]
    for section in ("context", "turns"):
        if section in data:
            lines += [f"{section}:", *(f"  - {one_line(entry, len(entry) > 1)}" for entry in data[section])]
    return "\n".join(lines) + "\n"
