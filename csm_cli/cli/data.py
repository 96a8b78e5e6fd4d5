"""csm data: recorded speech checked, and prepared for training."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import emit_json, emit_path, log_line, set_up, warn
from csm_cli.cli.expand import expand_dataclass
from csm_cli.cli.options import ResultOptions
from csm_cli.errors import NothingToLearn, UsageError

if TYPE_CHECKING:
    from rich.status import Status

    from csm_cli.data.clips import ClipFindings, DatasetEntry, SpeakerNumbers
    from csm_cli.data.counts import DatasetCounts
    from csm_cli.data.encode import EncodingRecipe
    from csm_cli.data.examine import ClipLimits

_SHOWN = 5  # lines about clips left out for one reason, where not all are asked for


def _clips(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Which clips", **more)


@dataclass(frozen=True)
class DataSelection:
    """What is read, and what of it is left out."""

    form: Annotated[
        str,
        _clips("--format", text="conversation, audiofolder, nemo or ljspeech; auto looks.", metavar="NAME"),
    ] = "auto"
    text_column: Annotated[
        str | None, _clips("--text-column", text="Where the words are, if not in text.", metavar="NAME")
    ] = None
    speaker: Annotated[
        int, _clips("--speaker", text="The number of speakers nobody names.", metavar="N", min=0, max=999)
    ] = 0
    shortest: Annotated[float, _clips("--shortest", text="Leave out clips below.", metavar="SEC", min=0)] = 0.2
    longest: Annotated[float, _clips("--longest", text="Leave out clips above.", metavar="SEC", min=0)] = 30.0
    max_pause: Annotated[
        float, _clips("--max-pause", text="Leave out clips with a longer silence.", metavar="SEC", min=0)
    ] = 2.0
    min_rate: Annotated[
        int, _clips("--min-rate", text="Leave out files of fewer samples a second.", metavar="HZ", min=1)
    ] = 8000
    all: Annotated[bool, _clips("--all", text="Tell of every clip left out, not of the first ones.")] = False

    @property
    def limits(self) -> ClipLimits:
        from csm_cli.data.examine import ClipLimits

        return ClipLimits(self.shortest, self.longest, self.max_pause, lowest_rate=self.min_rate)


@dataclass(frozen=True)
class Encoding:
    """What encodes the clips."""

    model: Annotated[
        str | None,
        typer.Option(metavar="ID|PATH", envvar="CSM_MODEL", help="Whose codec and window; the bundled voice if none."),
    ] = None
    revision: Annotated[str | None, typer.Option(metavar="REV", envvar="CSM_REVISION")] = None
    device: Annotated[
        str, typer.Option(metavar="NAME", envvar="CSM_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto"
    offline: Annotated[bool, typer.Option("--offline", envvar="CSM_OFFLINE", help="Use what is cached only.")] = False
    held_out: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=0.5, help="The share of conversations kept from training.")
    ] = 0.02


Sources = Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Folders, manifests and scripts.")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=1, max=256, help="Processes that work at once.")]


def check(
    sources: Sources,
    jobs: Jobs = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw how long the clips are.")] = None,
    *,
    choice: DataSelection,
    output_options: ResultOptions,
) -> None:
    """Say what of a dataset could be learned from, and why the rest could not.

    Reads this program's scripts and manifests, audiofolder, Hugging Face's Parquet, NeMo manifests and LJSpeech. Loads
    no model.
    """
    from functools import partial

    from csm_cli.data.examine import examine
    from csm_cli.data.workers import map_processes

    set_up(output_options)
    if plot and not _can_plot():
        raise UsageError('--plot draws with matplotlib, which is missing; pip install "csm-cli[train]"')
    speakers, found = _read(sources, choice)
    count = _Count(choice, output_options)
    with count.shown():
        for findings in map_processes(partial(examine, limits=choice.limits), found, jobs):
            count.add(findings)
    count.tell({"speaker_names": speakers.names})
    if plot:
        count.tally.save_plot(plot.expanduser())
        emit_path(plot)
    if not count.tally.learned:
        raise NothingToLearn


def prepare(
    sources: Sources,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of the prepared data.")],
    jobs: Jobs = 1,
    *,
    encoding: Encoding,
    choice: DataSelection,
    output_options: ResultOptions,
) -> None:
    """Encode a dataset to codes, once, for csm train; a run that was cut off goes on.

    What is left out, and why, is in DIR/dropped.jsonl, the figures in DIR/report.json.
    """
    set_up(output_options)
    folder = output.expanduser()
    speakers, found = _read(sources, choice)
    recipe = _recipe(encoding, choice)
    if not output_options.quiet:
        log_line(f"loading {encoding.model or 'the bundled voice'} ...")
    from csm_cli.data.prepare import Preparation

    work = Preparation(folder, recipe, jobs)
    count = _Count(choice, output_options)
    with count.shown("; what is finished stays, the same command goes on"):
        for step in work.run(found, speakers):
            count.add(step.found, step.done_before)
    count.tally.save(folder)
    if _can_plot():
        count.tally.save_plot(folder / "lengths.png")
    elif not output_options.quiet:
        log_line('no lengths.png: matplotlib is missing; pip install "csm-cli[train]"')
    sizes = _sizes(folder)
    if encoding.held_out and not sizes["held_out"]:
        warn(f"none of {sizes['examples']} examples is held out for evaluation; a larger --held-out would")
    count.tell({"output": str(folder), "speaker_names": speakers.names, **sizes, **count.speed()})
    if not output_options.json:
        emit_path(folder)


def _recipe(encoding: Encoding, choice: DataSelection) -> EncodingRecipe:
    from csm_cli.data.encode import EncodingRecipe

    return EncodingRecipe(
        model=encoding.model,
        revision=encoding.revision,
        device=encoding.device,
        limits=choice.limits,
        held_out=encoding.held_out,
        offline=encoding.offline,
    )


def _read(sources: list[Path], choice: DataSelection) -> tuple[SpeakerNumbers, Iterator[DatasetEntry]]:
    """The speakers met, once the pieces have been gone through.

    Raises:
        UsageError: an unknown format. InputError: no dataset there.
    """
    from csm_cli.data.clips import SpeakerNumbers
    from csm_cli.data.rows import TEXT, RowReader
    from csm_cli.data.sources import FORMS, find_datasets, read_datasets, read_entries

    if choice.form not in FORMS:
        raise UsageError(f"--format takes {', '.join(FORMS)}, not {choice.form!r}")
    if choice.shortest >= choice.longest:
        raise UsageError(f"--shortest {choice.shortest:g} is not below --longest {choice.longest:g}")
    speakers = SpeakerNumbers(choice.speaker)
    words = (choice.text_column,) if choice.text_column else TEXT
    parts = find_datasets([source.expanduser() for source in sources], choice.form)
    return speakers, read_entries(read_datasets(parts, RowReader(speakers, words)))


def _sizes(folder: Path) -> dict[str, int]:
    from csm_cli.data.store import open_store

    return {"examples": len(open_store(folder)), "held_out": len(open_store(folder, held_out=True))}


def _can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


class _Count:
    """What has been found so far, told as it comes and in the end."""

    def __init__(self, choice: DataSelection, output_options: ResultOptions) -> None:
        from csm_cli.data.counts import DatasetCounts

        self.tally: DatasetCounts = DatasetCounts()
        self._shown = float("inf") if choice.all else _SHOWN
        self._telling = output_options
        self._told: Counter[str] = Counter()
        self._status: Status | None = None
        self._fresh = 0.0  # seconds of sound of this run's own
        self._began = time.perf_counter()

    @contextmanager
    def shown(self, hint: str = "") -> Iterator[None]:
        """Draws the count where somebody looks at a terminal; where the work is broken off, tells where it stood."""
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True)
        try:
            if self._telling.quiet or not console.is_terminal:
                yield
                return
            with console.status("") as self._status:
                yield
        except NothingToLearn:
            raise
        except BaseException:
            if not self._telling.quiet and self.tally.clips:
                log_line(f"broken off; {self}{hint}")
            raise

    def add(self, found: ClipFindings, done_before: bool = False) -> None:
        self.tally.add(found)
        self._fresh += 0.0 if done_before else sum(seconds for _, seconds in found.kept)
        for drop in found.drops:
            self._told[drop.reason] += 1
            if self._told[drop.reason] <= self._shown and not self._telling.quiet:
                warn(str(drop))
        if self._status:
            self._status.update(str(self))
        elif not self._telling.quiet:
            log_line(str(self))

    def speed(self) -> dict[str, float]:
        """Hours of sound prepared in an hour of this run."""
        return {"hours_per_hour": round(self._fresh / (time.perf_counter() - self._began), 1)}

    def tell(self, more: dict[str, Any]) -> None:
        """The table for people, or everything as JSON."""
        if self._telling.json:
            emit_json({**self.tally.record(), **more})
        elif not self._telling.quiet:
            _show(self.tally)

    def __str__(self) -> str:
        minutes = self.tally.seconds / 60
        length = f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.2f} h"
        return f"{self.tally.clips} clips kept, {length}; {len(self.tally.drops)} left out"


def _show(tally: DatasetCounts) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "clips", "hours")
    table.add_row("kept", str(tally.clips), f"{tally.seconds / 3600:.3f}")
    for reason, (clips, seconds) in tally.left_out.items():
        table.add_row(f"left out: {reason}", str(clips), f"{seconds / 3600:.3f}" if seconds else "-")
    Console(stderr=True).print(table)


data = typer.Typer(name="data", help="Check recorded speech and prepare it for training.", no_args_is_help=True)
for command in (check, prepare):
    data.command()(expand_dataclass(command))
