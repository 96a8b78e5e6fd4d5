"""csm train: fine-tune a model on prepared data."""

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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit_path, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import INTERRUPTED, UsageError
from csm_cli.settings import setting

if TYPE_CHECKING:
    from rich.progress import Progress

    from csm_cli.train.run import StepDone, TrainingEvent, TrainingRun

_REPEATED_SIGNAL_SECONDS = 1.0  # within it a launcher forwards the Ctrl-C that the terminal has already sent
_LOG_SECONDS = 10.0
_SMOOTHING = 0.9  # of the losses and speeds shown


@dataclass(frozen=True)
class BaseModelOptions:
    """The base model and the device."""

    model: Annotated[
        str | None,
        setting("model", help="Base model instead of CONFIG's; default: CONFIG's, else the bundled voice."),
    ] = None
    revision: Annotated[str | None, setting("revision")] = None
    device: Annotated[
        str,
        setting("device", help="auto, cpu, cuda, cuda:N or mps; a launcher assigns GPUs itself."),
    ] = "auto"
    offline: Annotated[bool, setting("offline")] = False


def train(
    context: typer.Context,
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Training settings; configs/finetune has examples.")
    ],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the folder's path.")] = False,
    *,
    base: BaseModelOptions,
) -> None:
    """Train a model, or a LoRA adapter for it, on data from `csm data prepare`; a stopped run resumes.

    \b
    Examples:
      csm train configs/finetune/lora.yaml
      accelerate launch -m csm_cli train configs/finetune/full.yaml    # several GPUs or machines
    """
    configure_logging(OutputOptions(quiet=quiet))
    typed = {name for name in ("model", "revision") if _is_typed(context, name)}
    run = _open_run(config, quiet, base, typed)
    with _stop_requests() as requests, TrainingReporter(run.settings.steps, quiet or not run.is_main) as reporter:
        for event in run.events(lambda: bool(requests)):
            reporter.report(event)
    if requests:
        if run.is_main:
            log_line(f"stopped after step {run.trainer.step}, which is saved; run the same command to resume")
        raise typer.Exit(INTERRUPTED)
    if run.is_main:
        best = run.folder / "best"
        emit_path(best if best.is_dir() else run.folder / "last")


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _open_run(config: Path, quiet: bool, base: BaseModelOptions, typed: set[str]) -> TrainingRun:
    """Checks settings, libraries and data before a model is loaded. typed: options that take precedence over CONFIG.

    Raises:
        SettingsInvalid: the settings. UsageError: a library is not installed. InputError: no data, or it is damaged.
    """
    from csm_cli.train.settings import read_train_settings

    settings = read_train_settings(config)
    if "model" in typed:
        settings = settings.model_copy(update={"model": base.model, "revision": base.revision})
    elif settings.model is None:
        revision = base.revision if "revision" in typed else settings.revision or base.revision
        settings = settings.model_copy(update={"model": base.model, "revision": revision})
    elif "revision" in typed:
        settings = settings.model_copy(update={"revision": base.revision})
    for library, purpose in {"accelerate": "training", **({"peft": "LoRA"} if settings.lora else {})}.items():
        if find_spec(library) is None:
            raise UsageError(f'{purpose} needs {library}, which is not installed; pip install "csm-cli[train]"')
    from csm_cli.data.store import open_store

    open_store(Path(settings.data).expanduser())
    if not quiet and _is_first_process():
        log_line(f"loading {settings.model or 'the bundled voice'} ...")
    from csm_cli.train.run import TrainingRun

    return TrainingRun(settings, base.device, base.offline)


def _is_first_process() -> bool:
    """Whether this is the one process that prints, of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _stop_requests() -> Iterator[list[float]]:
    """The times of SIGINT and SIGTERM so far; a second request, later than a repetition, raises KeyboardInterrupt."""
    requests: list[float] = []

    def handle(number: int, frame: object) -> None:
        requests.append(time.monotonic())
        if requests[-1] - requests[0] > _REPEATED_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        if len(requests) == 1 and _is_first_process() and number == signal.SIGINT:  # a launcher sends SIGTERM
            print("\nstopping after this step; again to stop at once", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class TrainingReporter:
    """Reports the events of a run of `steps` steps: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self._steps, self._quiet = steps, quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._smoothed: dict[str, float] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingReporter:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}", markup=False))
            redirect = sys.stdout.isatty()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect)
            self._task = self._bar.add_task("", total=self._steps, figures="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, event: TrainingEvent) -> None:
        from csm_cli.train.run import EvaluationDone, StepDone, TrainingStarted

        if self._quiet:
            return
        if isinstance(event, StepDone):
            self._report_step(event)
        elif isinstance(event, TrainingStarted):
            parameters = f"training {event.trainable_parameters:,} of {event.total_parameters:,} parameters"
            log_line(f"{parameters} on {event.examples:,} examples; {event.held_out_examples:,} held out")
            if event.step:
                done = event.step == self._steps
                log_line(f"all {event.step} steps are done already" if done else f"resuming after step {event.step}")
            if self._bar is not None:
                self._bar.update(self._task, completed=event.step)
        elif isinstance(event, EvaluationDone):
            losses = " ".join(f"{value:.2f}" for value in event.codebook_losses)
            best = " (best so far)" if event.is_best else ""
            log_line(f"step {event.step}: held-out loss {event.loss:.3f}{best}; by codebook {losses}")
        elif event.path.name != "last":
            log_line(f"step {event.step}: wrote {event.path}")

    def _report_step(self, event: StepDone) -> None:
        values = {**event.losses, "speed": event.positions / event.seconds, "seconds": event.seconds}
        for name, value in values.items():
            self._smoothed[name] = _SMOOTHING * self._smoothed.get(name, value) + (1 - _SMOOTHING) * value
        smoothed = self._smoothed
        minutes, seconds = divmod(round((self._steps - event.step) * smoothed["seconds"]), 60)
        losses = f"backbone {smoothed['backbone']:.3f}  depth {smoothed['depth']:.3f}"
        figures = f"{losses}  {smoothed['speed']:,.0f} tokens/s  {minutes}:{seconds:02d} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step, figures=figures)
        elif event.step in (1, self._steps) or time.monotonic() - self._last_line > _LOG_SECONDS:
            log_line(f"step {event.step} of {self._steps}: {figures}")
            self._last_line = time.monotonic()
