"""Scripts, manifests and tagged text to conversations. No torch here; pydantic is imported nowhere else."""

from __future__ import annotations

from csm_cli.script.diagnostics import diagnostic_lines
from csm_cli.script.inline import parse_context, parse_say
from csm_cli.script.manifest import Manifest, read_manifest
from csm_cli.script.reader import read_either, read_script, script_from
from csm_cli.script.schema import json_schema

__all__ = [
    "Manifest",
    "diagnostic_lines",
    "json_schema",
    "parse_context",
    "parse_say",
    "read_either",
    "read_manifest",
    "read_script",
    "script_from",
]
