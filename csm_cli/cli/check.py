"""csm check: validates scripts and manifests without loading a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from csm_cli.cli.console import emit_json, log_line
from csm_cli.cli.options import ManifestOptions
from csm_cli.errors import Diagnostic, NotReady, ScriptInvalid, UsageError


def check(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Scripts and manifests; - is standard input.")
    ] = None,
    schema: Annotated[
        Literal["script", "batch"] | None,
        typer.Option("--schema", help="Print the JSON Schema of scripts or of batch lines, for editors."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")] = False,
    *,
    rows: ManifestOptions,
) -> None:
    """Validate scripts and manifests; no model is loaded.

    Every error is listed with file, line and column. The exit code is 0 if all files are valid, else 3.

    Example: csm check dialogue.yaml lines.jsonl
    """
    from csm_cli.script import json_schema, read_either

    if schema:
        emit_json(json_schema(schema))
        return
    if not files:
        raise UsageError("no file to check; name scripts or manifests")
    header = rows.read_header()
    diagnostics: list[Diagnostic] = []
    results: list[dict[str, Any]] = []
    count = 0
    for file in files:
        errors: tuple[Diagnostic, ...] = ()
        turns = 0
        try:
            turns = sum(len(conversation.turns) for conversation in read_either(file, rows.columns, header))
        except ScriptInvalid as invalid:
            errors = invalid.diagnostics
            diagnostics += errors
            count += invalid.count
        results.append(
            {"file": file, "ok": not errors, "turns": turns, "diagnostics": [asdict(each) for each in errors]}
        )
        if not errors and not json:
            log_line(f"{file}: valid, {turns} turn{'s' if turns != 1 else ''}")
    if json:
        emit_json({"ok": not diagnostics, "files": results})
    if diagnostics:
        raise NotReady(diagnostics, count)
