"""csm export: write a checkpoint, with an adapter merged into it, in a format for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from csm_cli.cli.console import configure_logging, emit_path, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import OutputRefused, UsageError
from csm_cli.settings import setting
from csm_cli.storage.folders import check_replaceable
from csm_cli.storage.paths import resolved_name


@dataclass(frozen=True)
class ExportOptions:
    """The checkpoint to export, and the format and dtype to write."""

    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Hugging Face id, folder or weights file; the bundled voice if unset."),
        setting("model"),
    ] = None
    adapter: Annotated[str | None, setting("adapter")] = None
    revision: Annotated[str | None, setting("revision")] = None
    offline: Annotated[bool, setting("offline")] = False
    to: Annotated[Literal["transformers", "original"], typer.Option(help="original: Sesame's own format.")] = (
        "transformers"
    )
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32, bfloat16 or float16; unchanged if unset.")] = (
        "auto"
    )


def export(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")],
    no_clobber: Annotated[bool, typer.Option("--no-clobber", help="Refuse to replace an existing folder.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder even if it holds files that csm did not write.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the folder's path.")] = False,
    *,
    options: ExportOptions,
) -> None:
    """Write a checkpoint for other tools: adapter merged, in transformers' or Sesame's format.

    Example: csm export --adapter runs/ana/best -o ana
    """
    configure_logging(OutputOptions(quiet=quiet))
    if no_clobber and output.exists():
        raise OutputRefused(f"{output}: exists already; leave out --no-clobber to replace it")
    folder = output.expanduser()
    check_replaceable(folder, "checkpoint", force)  # before gigabytes are read
    from csm_cli.checkpoint import open_checkpoint, processor_files
    from csm_cli.checkpoint.export import write_checkpoint
    from csm_cli.device import as_torch, check_names

    check_names("auto", options.dtype)
    dtype = None if options.dtype == "auto" else as_torch(options.dtype)
    if not quiet:
        log_line(f"reading {options.model or 'the bundled voice'} ...")
    model, revision, offline = options.model, options.revision, options.offline
    checkpoint = open_checkpoint(model, revision, options.adapter, offline=offline)
    if resolved_name(folder) in {resolved_name(file.parent) for file in checkpoint.weights.files}:
        raise UsageError(f"{output} holds the exported checkpoint itself and would be replaced; name another -o")
    write_checkpoint(checkpoint, processor_files(model, revision, offline), folder, options.to, dtype, force)
    emit_path(output)
