"""The commands, in groups, and how help is shown: the usual options by -h, all of them by --help-all."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from csm_cli import __version__
from csm_cli.cli.batch import batch, merge
from csm_cli.cli.bench import bench
from csm_cli.cli.check import check
from csm_cli.cli.config import config
from csm_cli.cli.console import emit
from csm_cli.cli.converse import converse
from csm_cli.cli.data import data
from csm_cli.cli.doctor import doctor
from csm_cli.cli.export import export
from csm_cli.cli.lexicon import lexicon
from csm_cli.cli.models import models
from csm_cli.cli.options import expand_options
from csm_cli.cli.results import results
from csm_cli.cli.say import say
from csm_cli.cli.script import script
from csm_cli.cli.serve import serve
from csm_cli.cli.takes import takes
from csm_cli.cli.train import train
from csm_cli.cli.voices import voices

COMMANDS: dict[str, tuple[Any, ...]] = {
    "Speak": (say, converse, batch, serve),
    "Scripts and batches": (check, script, lexicon, takes, results, merge),
    "Voices and models": (voices, models, export),
    "Training": (data, train),
    "Tools": (config, bench, doctor),
}


class _BriefHelp:
    """Help that shows the usual options; those in panels, with --help-all only."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        command: Any = self
        everything = bool(ctx.obj and ctx.obj.get("help_all"))
        more = False
        command.help = "\n\n".join(map(_reflowed, inspect.cleandoc(command.help or "").split("\n\n")))
        for each in command.get_params(ctx):
            if getattr(each, "is_bool_flag", False):
                each.metavar = each.metavar or ""  # no type beside a switch
            if each.param_type_name == "option":
                each._get_number_range_help_str = lambda: None  # bounds belong into the error
            if "-h" in each.opts:
                each.opts = ["-h", "--help"]
                each.help = "Show this help; --help-all shows all options."
            if each.param_type_name == "argument":
                each.display_type_rich = lambda ctx: None
            each.hidden = not everything and bool(each.rich_help_panel or each.name in _COMPLETION)
            more |= each.hidden
        super().format_help(ctx, formatter)  # type: ignore[misc]
        if more:
            typer.echo(f" More options: {ctx.command_path} --help-all")


_COMPLETION = ("install_completion", "show_completion")


def _reflowed(paragraph: str) -> str:
    """A paragraph without line breaks, unless its lines are indented, as those of examples are."""
    lines = paragraph.removeprefix("\b\n").splitlines()
    return "\n".join(lines) if any(line.startswith(" ") for line in lines) else " ".join(lines)


class HelpCommand(_BriefHelp, TyperCommand):
    """A command."""


class HelpGroup(_BriefHelp, TyperGroup):
    """A group of commands."""


app = typer.Typer(
    name="csm",
    cls=HelpGroup,
    context_settings={"help_option_names": ["-h", "--help", "--help-all"]},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def csm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may follow the command too.")] = False,
) -> None:
    """Text to speech with Sesame's CSM: single texts, dialogues and batches, in saved or cloned voices."""
    if version:
        emit(f"csm {__version__}")
    elif context.invoked_subcommand is None:
        context.get_help()


for panel, commands in COMMANDS.items():
    for command in commands:
        if not isinstance(command, typer.Typer):
            app.command(cls=HelpCommand, rich_help_panel=panel)(expand_options(command))
            continue
        command.info.cls = HelpGroup
        for each in command.registered_commands:
            each.cls, each.callback = HelpCommand, expand_options(each.callback)  # type: ignore[arg-type]
        app.add_typer(command, rich_help_panel=panel)
