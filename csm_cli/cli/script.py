"""csm script: scripts from other programs' forms."""

from __future__ import annotations

import math
import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_path, log_line
from csm_cli.errors import UsageError
from csm_cli.storage.files import check_writable, write_atomically
from csm_cli.storage.paths import expand_path, resolved_name

script = typer.Typer(name="script", help="Scripts from other programs' forms.", no_args_is_help=True)


class ScriptFormat(Enum):
    dia = "dia"
    vibevoice = "vibevoice"
    higgs = "higgs"
    srt = "srt"
    vtt = "vtt"


@script.callback()
def group() -> None:
    """Scripts from other programs' forms."""


@script.command("convert")
def convert_file(
    source: Annotated[str, typer.Argument(metavar="IN", help="A dialogue of another program; - is standard input.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="The script, as YAML; - is standard output.")
    ] = "-",
    form: Annotated[
        ScriptFormat | None, typer.Option("--from", help="Its form; told by what is in it if not given.")
    ] = None,
    no_clobber: Annotated[bool, typer.Option("--no-clobber", help="Refuse to replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the output's path.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """A dialogue in the form of Dia, VibeVoice, Higgs Audio, SubRip or WebVTT as a script for csm converse."""
    from csm_cli.script import script_from
    from csm_cli.script.importers import convert

    path = None if output == "-" else expand_path(output)
    if path:
        check_writable(path, not no_clobber)
        if source != "-" and resolved_name(path) == resolved_name(Path(source)):
            raise UsageError(f"{path} is what is converted and would be replaced; name another -o")
    folder = path.parent if path else Path()
    data = convert(source, form.value if form else None, folder)
    talk = script_from(data, folder, source)
    text = _yaml(data)
    if path is None:
        for line in text.splitlines():
            emit(line)
        return
    write_atomically(path, text.encode())
    emit_path(path)
    if not quiet:
        command = f"csm converse {shlex.quote(str(path))} -o out.wav"
        turns = f"{len(talk.turns)} turn{'s' if len(talk.turns) > 1 else ''}"
        log_line(f"{turns} by {', '.join(data['speakers'])}; speak them with {command}")


def _yaml(data: dict[str, Any]) -> str:
    """One line for each speaker and turn, as people write them."""
    blocks = [f"csm: {data['csm']}", "speakers:"]
    blocks += [f"  {_line({name: each}, None)}" for name, each in data["speakers"].items()]
    for part in ("context", "turns"):
        if part in data:
            blocks += [f"{part}:", *(f"  - {_line(each, len(each) > 1)}" for each in data[part])]
    return "\n".join(blocks) + "\n"


def _line(fields: dict[str, Any], braces: bool | None) -> str:
    """A mapping on one line; braces: around it, or (None) around what is in it."""
    import yaml

    text: str = yaml.safe_dump(fields, default_flow_style=braces, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.strip()
