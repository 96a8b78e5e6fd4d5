"""Scripts, manifests and tagged text to conversations."""

from __future__ import annotations

from csm_cli.script.inline import parse_context, parse_say, parse_voice, recording_path
from csm_cli.script.reader import Manifest, read_either, read_manifest, read_script, script_from
from csm_cli.script.schema import json_schema
from csm_cli.script.source import diagnostic_lines

__all__ = [
    "Manifest",
    "diagnostic_lines",
    "json_schema",
    "parse_context",
    "parse_say",
    "parse_voice",
    "read_either",
    "read_manifest",
    "read_script",
    "recording_path",
    "script_from",
]
