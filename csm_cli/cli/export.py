"""csm export: a checkpoint, with an adapter merged into it, in the format that somebody else reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csm_cli.cli.console import emit_path, note, set_up
from csm_cli.cli.options import Telling
from csm_cli.errors import OutputRefused, UsageError


def export(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the checkpoint goes.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            envvar="CSM_MODEL",
            help="Hugging Face id, directory or weights file; the bundled voice if none.",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", metavar="ID|PATH", envvar="CSM_ADAPTER", help="A LoRA adapter to merge into the weights."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--to", metavar="transformers|original", help="original: Sesame's own format.")
    ] = "transformers",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16 or float16; as it is if none is named.")
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="REV", envvar="CSM_REVISION", help="Commit, branch or tag of a Hugging Face id."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", envvar="CSM_OFFLINE", help="Use what is cached only.")] = False,
    no_clobber: Annotated[bool, typer.Option("--no-clobber", help="Refuse to replace an existing folder.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the folder's path.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Write a checkpoint for other tools: merged, in transformers' format or in Sesame's original one."""
    set_up(Telling(quiet=quiet, debug=debug))
    if no_clobber and output.exists():
        raise OutputRefused(f"{output} exists, and --no-clobber keeps it")
    from csm_cli.checkpoint import companions, open_checkpoint
    from csm_cli.checkpoint.writing import FORMATS, write_checkpoint

    if form not in FORMATS:
        raise UsageError(f"--to takes {' or '.join(FORMATS)}, not {form!r}")
    if not quiet:
        note(f"reading {model or 'the bundled voice'} ...")
    from csm_cli.device import DTYPES

    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f'unknown dtype "{dtype}"; use {", ".join(DTYPES)}, or leave it out')
    found = open_checkpoint(model, revision, adapter, offline=offline)
    write_checkpoint(found, companions(model, revision, offline), output.expanduser(), form, DTYPES.get(dtype))
    emit_path(output)
