"""How far a training has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from csm_cli.cli.console import log_line
from csm_cli.train.run import EvaluationDone, StepDone, TrainingEvent, TrainingStarted

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_SECONDS = 10.0
_MEMORY = 0.9  # of the smoothed losses and speeds


class TrainingReporter:
    """Tells the events of a run of `steps` steps on standard error."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self._steps, self._quiet = steps, quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._smooth: dict[str, float] = {}
        self._told = time.monotonic()

    def __enter__(self) -> TrainingReporter:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("", total=self._steps, numbers="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, event: TrainingEvent) -> None:
        if self._quiet:
            return
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, TrainingStarted):
            self._begin(event)
        elif isinstance(event, EvaluationDone):
            books = " ".join(f"{value:.2f}" for value in event.codebooks)
            best = ", the best so far" if event.best else ""
            log_line(f"step {event.step}: held-out loss {event.loss:.3f}{best}; by codebook {books}")
        elif event.path.name != "last":
            log_line(f"step {event.step}: {event.path}")

    def _begin(self, event: TrainingStarted) -> None:
        trained, total = event.parameters
        examples, held_out = event.examples
        log_line(f"{trained:,} of {total:,} parameters learn from {examples:,} examples; {held_out:,} are held out")
        if event.step == self._steps:
            log_line(f"all {event.step} steps are done already")
        elif event.step:
            log_line(f"going on from step {event.step}")
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step)

    def _step(self, event: StepDone) -> None:
        figures = {**event.losses, "speed": event.positions / event.seconds, "seconds": event.seconds}
        for name, value in figures.items():
            before = self._smooth.get(name, value)
            self._smooth[name] = _MEMORY * before + (1 - _MEMORY) * value
        numbers = self._numbers(event.step)
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step, numbers=numbers)
        elif event.step == self._steps or event.step == 1 or time.monotonic() - self._told > _LINE_SECONDS:
            log_line(f"step {event.step} of {self._steps}: {numbers}")
            self._told = time.monotonic()

    def _numbers(self, step: int) -> str:
        smooth = self._smooth
        minutes, seconds = divmod(round((self._steps - step) * smooth["seconds"]), 60)
        losses = f"backbone {smooth['backbone']:.3f}  depth {smooth['depth']:.3f}"
        return f"{losses}  {smooth['speed']:,.0f} tokens/s  {minutes}:{seconds:02d} left"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}", markup=False))
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
