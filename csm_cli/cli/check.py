"""csm check: every complaint about scripts and manifests, without loading a model."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit_json, note
from csm_cli.errors import Complaint, ScriptInvalid, UsageError


class Kind(Enum):
    script = "script"
    batch = "batch"


def check(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Scripts and manifests; - is standard input.")
    ] = None,
    schema: Annotated[
        Kind | None, typer.Option("--schema", help="Print the JSON Schema of scripts or of batch lines, for editors.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="What was found, as JSON on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Say everything that is wrong with scripts and manifests."""
    if schema:
        from csm_cli.script import json_schema

        emit_json(json_schema(schema.value))
    elif not files:
        raise UsageError("no file to check; name scripts or manifests")
    else:
        _check(files, json)


def _check(files: list[str], as_json: bool) -> None:
    complaints: list[Complaint] = []
    records: list[dict[str, Any]] = []
    for file in files:
        found, turns = _complaints(file)
        complaints += found
        records.append({"file": file, "ok": not found, "turns": turns, "complaints": [asdict(each) for each in found]})
        if not found and not as_json:
            note(f"{file}: {turns} turn{'s' if turns != 1 else ''}, nothing to complain about")
    if as_json:
        emit_json({"ok": not complaints, "files": records})
    if complaints:
        raise ScriptInvalid(complaints)


def _complaints(file: str) -> tuple[tuple[Complaint, ...], int]:
    from csm_cli.script import read_either

    try:
        return (), sum(len(conversation.turns) for conversation in read_either(file))
    except ScriptInvalid as invalid:
        return invalid.complaints, 0
