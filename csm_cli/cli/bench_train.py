"""csm bench finetune and train: what training is worth, and what a step costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.bench_speed import print_figures
from csm_cli.cli.console import log_line, set_up
from csm_cli.cli.options import OutputOptions

if TYPE_CHECKING:
    from csm_cli.train.run import TrainingEvent

_DEMO = Path("configs/finetune/demo.yaml")


def finetune(
    config: Annotated[Path, typer.Argument(metavar="[CONFIG.yaml]", help="Settings of csm train.")] = _DEMO,
    minutes: Annotated[float, typer.Option(metavar="N", min=0.1, help="Speech to learn from.")] = 10.0,
    sentences: Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Measured before and after.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """A voice never heard before, learned from minutes of its speech: is it matched, and still understood?

    Needs espeak-ng and a word list (apt install espeak-ng wamerican).
    """
    set_up(OutputOptions(json=json, debug=debug))
    from csm_cli.cli.train_progress import TrainingReporter
    from csm_cli.recipe.finetune_demo import Demo, measure
    from csm_cli.train.settings import read_train_settings

    settings = read_train_settings(config)
    with TrainingReporter(settings.steps, quiet=json) as teller:

        def hear(event: str | TrainingEvent) -> None:
            if isinstance(event, str):
                if not json:
                    log_line(f"{event} ...")
            else:
                teller.tell(event)

        figures = measure(settings, Demo(minutes, sentences), hear)
    print_figures(figures, json)


def train(
    model: Annotated[
        str | None, typer.Option(metavar="ID|PATH", envvar="CSM_MODEL", help="The bundled voice if none is named.")
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Conversations in a batch.")] = 4,
    frames: Annotated[int, typer.Option(metavar="N", min=2, help="Frames of audio in each.")] = 50,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps on each side.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """A step on prepared codes beside transformers' own, which encodes its audio, on the same batch."""
    set_up(OutputOptions(json=json, debug=debug))
    from csm_cli.bench.train import TrainLoad, measure

    if not json:
        log_line(f"loading {model or 'the bundled voice'} ...")
    print_figures(measure(model, TrainLoad(rows, frames, steps)), json)
