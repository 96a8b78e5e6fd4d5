"""The commands."""

from __future__ import annotations

from typing import Annotated

import typer

from csm_cli import __version__
from csm_cli.cli.batch import batch, merge
from csm_cli.cli.bench import bench
from csm_cli.cli.check import check
from csm_cli.cli.config import config
from csm_cli.cli.console import emit
from csm_cli.cli.converse import converse
from csm_cli.cli.data import data
from csm_cli.cli.doctor import doctor
from csm_cli.cli.expand import expand_dataclass
from csm_cli.cli.export import export
from csm_cli.cli.models import models
from csm_cli.cli.say import say
from csm_cli.cli.script import script
from csm_cli.cli.train import train
from csm_cli.cli.voices import voices
from csm_cli.settings import defaults, read_settings

app = typer.Typer(
    name="csm",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_CONFIGURED = ("say", "converse", "batch", "voices", "models", "data", "train", "export")
_WITHIN = ("add", "pull", "prepare")  # commands of those groups
for command in (say, converse, batch, merge, check, train, export, doctor):
    app.command()(expand_dataclass(command))
for group in (voices, models, config, data, bench, script):
    app.add_typer(group)


@app.callback()
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Speech from text, scripts and manifests with Sesame's Conversational Speech Model."""
    if context.invoked_subcommand in _CONFIGURED:
        values = defaults(read_settings())
        if context.invoked_subcommand == "export":
            values.pop("dtype", None)  # in what a model computes, not in what it is written
        context.default_map = {context.invoked_subcommand: values | dict.fromkeys(_WITHIN, values)}
    if version:
        emit(f"csm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
