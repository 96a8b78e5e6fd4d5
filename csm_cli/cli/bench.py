"""csm bench: measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.bench_lines import lines
from csm_cli.cli.bench_speed import batch, decode, growth, start
from csm_cli.cli.bench_train import train
from csm_cli.cli.console import configure_logging, emit_json, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import UsageError
from csm_cli.settings import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csm_cli.recipe.voice_bench import Figure, VoiceBench

bench = typer.Typer(name="bench", help="Measure what is claimed.", no_args_is_help=True)
for command in (decode, batch, growth, lines, start, train):
    bench.command()(command)


@bench.command()
def voice(
    model: Annotated[
        str | None,
        setting("model", help="The bundled voice if none is named."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    sentences: Annotated[
        int, typer.Option("--sentences", metavar="N", min=10, max=200, help="Fewer for a quick look.")
    ] = 200,
    only: Annotated[str | None, typer.Option("--only", metavar="NAME,...", help="Just these figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
) -> None:
    """Does a voice say the right words, in the right voice, and stop?

    Needs espeak-ng and a word list (apt install espeak-ng wamerican); two figures need pocketsphinx, the extra "bench".
    """
    configure_logging(OutputOptions(json=json))
    names = _names(only)
    measured = _open(model, device, sentences)
    figures = []
    for name in names:
        if not json:
            log_line(f"measuring {name} ...")
        figures.append(measured.measure(name))
    if not json:
        _show(figures)
    emit_json({"bench": "voice", "model": measured.model, "sentences": sentences, **_record(figures)})


def _names(only: str | None) -> list[str]:
    """The figures to be measured.

    Raises:
        UsageError: one of them does not exist.
    """
    from csm_cli.recipe.voice_bench import FIGURES

    names = [name.strip() for name in only.split(",")] if only else list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise UsageError(f"no figure {unknown[0]!r}; --only takes {', '.join(FIGURES)}")
    return names


def _open(model: str | None, device: str, sentences: int) -> VoiceBench:
    from functools import partial

    from csm_cli.checkpoint import open_checkpoint
    from csm_cli.device import pick_device, pick_dtype
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.recipe.measure import Reference
    from csm_cli.recipe.voice_bench import VoiceBench

    reference, where = Reference(), pick_device(device)
    load = partial(Synthesizer, open_checkpoint(model), where, pick_dtype("auto", where))
    return VoiceBench(load, reference, sentences)


def _show(figures: Sequence[Figure]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("figure", "measured", "target", "", "how")
    for figure in figures:
        verdict = {True: "[green]pass", False: "[red]miss", None: "[yellow]not measured"}[figure.passed]
        value = "-" if figure.value is None else f"{figure.value:.3f}"
        table.add_row(figure.name, value, str(figure.goal), verdict, Text(figure.note))
    Console(stderr=True).print(table)


def _record(figures: Sequence[Figure]) -> dict[str, Any]:
    """Values by name; why there is none as `<name>_reason`."""
    values = {figure.name: None if figure.value is None else round(figure.value, 4) for figure in figures}
    reasons = {f"{figure.name}_reason": figure.note for figure in figures if figure.value is None}
    return {**values, **reasons}
