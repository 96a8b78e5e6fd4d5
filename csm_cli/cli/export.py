"""csm export: a checkpoint, with an adapter merged into it, in the format that somebody else reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.console import configure_logging, emit_path, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import OutputRefused, UsageError
from csm_cli.settings import setting
from csm_cli.storage.paths import resolved_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is come by."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Hugging Face id, directory or weights file; the bundled voice if none.",
        ),
        setting("model"),
    ] = None
    adapter: Annotated[
        str | None,
        setting("adapter"),
    ] = None
    revision: Annotated[
        str | None,
        setting("revision"),
    ] = None
    offline: Annotated[bool, setting("offline")] = False


@dataclass(frozen=True)
class ExportFormat:
    """How it is written."""

    to: Annotated[str, typer.Option(metavar="transformers|original", help="original: Sesame's own format.")] = (
        "transformers"
    )
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="float32, bfloat16 or float16; as it is if none is named.")
    ] = "auto"

    def checked(self) -> torch.dtype | None:
        """The dtype of the weights, None to leave them as they are.

        Raises:
            UsageError: no such format or dtype.
        """
        from csm_cli.checkpoint.export import FORMATS
        from csm_cli.device import DTYPES, as_torch

        if self.to not in FORMATS:
            raise UsageError(f"--to takes {' or '.join(FORMATS)}, not {self.to!r}")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f'unknown dtype "{self.dtype}"; use {", ".join(DTYPES)}, or leave it out')
        return None if self.dtype == "auto" else as_torch(self.dtype)


def export(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the checkpoint goes.")],
    no_clobber: Annotated[bool, typer.Option("--no-clobber", help="Refuse to replace an existing folder.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the folder's path.")] = False,
    *,
    given: ExportOptions,
    form: ExportFormat,
) -> None:
    """Write a checkpoint for other tools: merged, in transformers' format or in Sesame's original one."""
    configure_logging(OutputOptions(quiet=quiet))
    if no_clobber and output.exists():
        raise OutputRefused(f"{output} exists, and --no-clobber keeps it")
    dtype = form.checked()
    if not quiet:
        log_line(f"reading {given.model or 'the bundled voice'} ...")
    from csm_cli.checkpoint import open_checkpoint, processor_files
    from csm_cli.checkpoint.export import write_checkpoint

    model, revision, offline = given.model, given.revision, given.offline
    found = open_checkpoint(model, revision, given.adapter, offline=offline)
    if resolved_name(output.expanduser()) in {resolved_name(file.parent) for file in found.weights.files}:
        raise UsageError(f"{output} is what is exported and would be replaced; name another -o")
    write_checkpoint(found, processor_files(model, revision, offline), output.expanduser(), form.to, dtype)
    emit_path(output)
