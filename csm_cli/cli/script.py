"""csm script: converts dialogues in other formats to scripts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from csm_cli.cli.console import emit, emit_path, log_line
from csm_cli.errors import UsageError
from csm_cli.storage.files import check_writable, write_atomically
from csm_cli.storage.paths import expand_path, resolved_name

_HELP = """Convert dialogues in other formats to scripts.

Example: csm script convert episode.srt -o episode.yaml"""

script = typer.Typer(name="script", help=_HELP, no_args_is_help=True)


@script.callback(help=_HELP)
def group() -> None:
    pass


@script.command("convert")
def convert_file(
    source: Annotated[str, typer.Argument(metavar="IN", help="File to convert; - is standard input.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Script to write, in YAML; - is standard output.")
    ] = "-",
    source_format: Annotated[
        Literal["text", "dia", "vibevoice", "higgs", "srt", "vtt", "ass", "sbv", "lrc", "json"] | None,
        typer.Option("--from", help="Format of the file; detected if not given."),
    ] = None,
    no_clobber: Annotated[bool, typer.Option("--no-clobber", help="Refuse to replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the path of the output.")] = False,
) -> None:
    """Convert subtitles, a transcript or a dialogue in plain text to a script for csm converse.

    Example: csm script convert episode.srt -o episode.yaml
    """
    from csm_cli.script import script_from
    from csm_cli.script.importers import convert
    from csm_cli.script.writer import script_yaml

    path = None if output == "-" else expand_path(output)
    if path:
        check_writable(path, not no_clobber)
        if source != "-" and resolved_name(path) == resolved_name(Path(source)):
            raise UsageError(f"{path} is the input and would be replaced; choose another -o")
    folder = path.parent if path else Path()
    data = convert(source, source_format, folder)
    conversation = script_from(data, folder, source)
    text = script_yaml(data)
    if path is None:
        for line in text.splitlines():
            emit(line)
        return
    write_atomically(path, text.encode())
    emit_path(path)
    if not quiet:
        turns = f"{len(conversation.turns)} turn{'s' if len(conversation.turns) > 1 else ''}"
        command = f"csm converse {shlex.quote(str(path))} -o out.wav"
        log_line(f"{turns}, speakers: {', '.join(data['speakers'])}; next: {command}")
