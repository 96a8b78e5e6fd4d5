"""csm merge: the shards of a batch joined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csm_cli.batch import LEDGER
from csm_cli.cli.console import emit_path, log_line


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders that csm batch has written to.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder that gets it all.")],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the path of the results.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Join the shards of a batch in one folder: files and results.

    Batch goes on there as if it had made it all.
    """
    from csm_cli.batch.merge import merge as join

    target = output.expanduser()
    good, failed = join([folder.expanduser() for folder in folders], target)
    if not quiet:
        log_line(f"{good} done, {failed} failed, from {len(folders)} folder{'s' if len(folders) != 1 else ''}")
    emit_path(target / LEDGER)
