"""Scripts, manifests and tagged text to conversations."""

from __future__ import annotations

from csm_cli.script.inline import parse_context, parse_say, parse_voice, recording_path
from csm_cli.script.manifest import Manifest, ManifestColumns, read_voice_map
from csm_cli.script.reader import read_either, read_manifest, read_script, script_from
from csm_cli.script.schema import json_schema
from csm_cli.script.source import diagnostic_lines

__all__ = [
    "Manifest",
    "ManifestColumns",
    "diagnostic_lines",
    "json_schema",
    "parse_context",
    "parse_say",
    "parse_voice",
    "read_either",
    "read_manifest",
    "read_script",
    "read_voice_map",
    "recording_path",
    "script_from",
]
