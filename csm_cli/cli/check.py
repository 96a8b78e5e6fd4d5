"""csm check: every diagnostic about scripts and manifests, without loading a model."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit_json, log_line
from csm_cli.errors import Diagnostic, NotReady, ScriptInvalid, UsageError


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
    diagnostics: list[Diagnostic] = []
    records: list[dict[str, Any]] = []
    count = 0
    for file in files:
        turns, invalid = _read(file)
        found = invalid.diagnostics if invalid else ()
        diagnostics += found
        count += invalid.count if invalid else 0
        records.append({"file": file, "ok": not found, "turns": turns, "diagnostics": [asdict(each) for each in found]})
        if not found and not as_json:
            log_line(f"{file}: {turns} turn{'s' if turns != 1 else ''} checked, ready to be spoken")
    if as_json:
        emit_json({"ok": not diagnostics, "files": records})
    if diagnostics:
        raise NotReady(diagnostics, count)


def _read(file: str) -> tuple[int, ScriptInvalid | None]:
    """How many turns it has, or what is wrong with it."""
    from csm_cli.script import read_either

    try:
        return sum(len(conversation.turns) for conversation in read_either(file)), None
    except ScriptInvalid as invalid:
        return 0, invalid
