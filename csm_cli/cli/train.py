"""csm train: learn a voice or a language from prepared data."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.console import emit_path, log_line, set_up
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from csm_cli.cli.train_progress import TrainingReporter
    from csm_cli.train.run import TrainingRun
    from csm_cli.train.settings import TrainSettings

_ECHO = 1.0  # seconds in which a launcher passes on the Ctrl-C that the terminal has sent already
_MISSING = '{0} needs {1}, which is not installed; pip install "csm-cli[train]"'


@dataclass(frozen=True)
class Base:
    """What is trained where the file of settings names no model, how it is come by, and where it is trained."""

    model: Annotated[
        str | None,
        typer.Option(metavar="ID|PATH", envvar="CSM_MODEL", help="If CONFIG names none; else the bundled voice."),
    ] = None
    revision: Annotated[
        str | None, typer.Option(metavar="REV", envvar="CSM_REVISION", help="Commit, branch or tag of that model.")
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            envvar="CSM_DEVICE",
            help="auto, cpu, cuda, cuda:N or mps; all but cpu is up to a launcher.",
        ),
    ] = "auto"
    offline: Annotated[bool, typer.Option("--offline", envvar="CSM_OFFLINE", help="Use what is cached only.")] = False

    def completed(self, settings: TrainSettings) -> TrainSettings:
        if settings.model is not None:
            return settings
        return settings.model_copy(update={"model": self.model, "revision": settings.revision or self.revision})


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what; see configs/finetune.")
    ],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the folder's path.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    *,
    base: Base,
) -> None:
    """Train a model, or a LoRA adapter for it, on data that `csm data prepare` has made.

    Goes on where it was stopped. On several GPUs or machines: accelerate launch -m csm_cli train CONFIG.yaml
    """
    set_up(OutputOptions(quiet=quiet, debug=debug))
    run = _opened(config, quiet, base)
    from csm_cli.cli.train_progress import TrainingReporter

    with _stopping() as stopped:
        teller = TrainingReporter(run.steps, quiet or not run.main)
        _follow(run, teller, stopped)
    if stopped:
        if run.main:
            log_line(f"stopped after step {run.trainer.step}, which is saved; the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    if run.main:
        best = run.folder / "best"
        emit_path(best if best.is_dir() else run.folder / "last")


def _opened(config: Path, quiet: bool, base: Base) -> TrainingRun:
    from csm_cli.train.settings import read_train_settings

    settings = base.completed(read_train_settings(config))
    _check(settings)
    if not quiet and _first():
        log_line(f"loading {settings.model or 'the bundled voice'} ...")
    from csm_cli.train.run import TrainingRun

    return TrainingRun(settings, base.device, base.offline)


def _check(settings: TrainSettings) -> None:
    """What can be told before a model is loaded.

    Raises:
        UsageError: the extra is not installed. InputError: no data, or it is damaged.
    """
    if find_spec("accelerate") is None:
        raise UsageError(_MISSING.format("training", "accelerate"))
    if settings.lora and find_spec("peft") is None:
        raise UsageError(_MISSING.format("LoRA", "peft"))
    from csm_cli.data.store import open_store

    open_store(Path(settings.data).expanduser())


def _follow(run: TrainingRun, teller: TrainingReporter, stopped: list[float]) -> None:
    with teller:
        for event in run.events(lambda: bool(stopped)):
            teller.tell(event)


def _first() -> bool:
    """Whether this is the process that tells, of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _stopping() -> Iterator[list[float]]:
    """A list that holds something once somebody asked to stop; asked a second time, the run ends at once."""
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > _ECHO:
            raise KeyboardInterrupt
        if len(asked) == 1 and _first() and number == signal.SIGINT:  # SIGTERM is a launcher's, often after a failure
            print("\nstopping after this step; again to stop at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
