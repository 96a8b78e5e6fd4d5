"""csm bench train: speed and memory of a training step."""

from __future__ import annotations

from typing import Annotated

import typer

from csm_cli.cli.bench_speed import print_figures
from csm_cli.cli.console import configure_logging, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.settings import setting


def train(
    model: Annotated[str | None, setting("model", help="The bundled voice if none is named.")] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Conversations in a batch.")] = 4,
    frames: Annotated[int, typer.Option(metavar="N", min=2, help="Frames of audio in each.")] = 50,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps on each side.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
) -> None:
    """A step on prepared codes beside transformers' own, which encodes its audio, on the same batch."""
    configure_logging(OutputOptions(json=json))
    from csm_cli.bench.train import TrainLoad, measure

    if not json:
        log_line(f"loading {model or 'the bundled voice'} ...")
    print_figures(measure(model, TrainLoad(rows, frames, steps)), json)
