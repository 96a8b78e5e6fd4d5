"""csm data: check recorded speech, and prepare it for training."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit_json, emit_path, log_line, warn
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import NothingToLearn, UsageError
from csm_cli.settings import setting
from csm_cli.storage.remote import is_url, local_name

if TYPE_CHECKING:
    from rich.status import Status

    from csm_cli.data.checks import ClipLimits
    from csm_cli.data.dataset import ChunkResult, DatasetChunk, SpeakerNumbers, TrainingClip

_EXAMPLES = 3  # clips that are shown as they will be learned
_LINES_PER_REASON = 5  # of dropped clips, without --all
_NO_MATPLOTLIB = 'matplotlib is not installed; pip install "csm-cli[train]"'


def _option(metavar: str | None, help: str, *flags: str, **more: Any) -> Any:
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel="Clips", **more)


@dataclass(frozen=True)
class DataSelection:
    """How datasets are read, and which clips are dropped."""

    format: Annotated[str, _option("NAME", "auto, conversation, audiofolder, nemo or ljspeech.")] = "auto"
    text_column: Annotated[str | None, _option("NAME", "Column of the transcript, by name or number.")] = None
    speaker_column: Annotated[str | None, _option("NAME", "Column of the speaker.")] = None
    audio_column: Annotated[str | None, _option("NAME", "Column of the audio file.")] = None
    default_speaker: Annotated[int, _option("N", "Speaker number of unlabelled clips.", min=0, max=999)] = 0
    min_duration: Annotated[float, _option("SEC", "Drop shorter clips.", min=0)] = 0.2
    max_duration: Annotated[float, _option("SEC", "Drop longer clips.", min=0)] = 30.0
    max_silence: Annotated[float, _option("SEC", "Drop clips with a longer silence.", min=0)] = 2.0
    min_rate: Annotated[int, _option("HZ", "Drop files with a lower sample rate.", min=1)] = 8000
    all: Annotated[bool, _option(None, "Report every dropped clip, not only the first 5 per reason.", "--all")] = False

    @property
    def limits(self) -> ClipLimits:
        from csm_cli.data.checks import ClipLimits

        return ClipLimits(self.min_duration, self.max_duration, self.max_silence, min_rate=self.min_rate)

    def read(self, sources: list[str]) -> tuple[SpeakerNumbers, Iterator[DatasetChunk]]:
        """The dataset in chunks; the speaker names are complete once all chunks have been read.

        Raises:
            UsageError: an unknown format, or limits that exclude everything. InputError: no dataset there.
        """
        from csm_cli.data.columns import ColumnChoice
        from csm_cli.data.dataset import SpeakerNumbers
        from csm_cli.data.discovery import DATASET_FORMATS, find_datasets
        from csm_cli.data.readers import RowReader, read_datasets, split_chunks

        if self.format not in DATASET_FORMATS:
            raise UsageError(f"--format takes {', '.join(DATASET_FORMATS)}, not {self.format!r}")
        if self.min_duration >= self.max_duration:
            limits = f"--min-duration {self.min_duration:g}", f"--max-duration {self.max_duration:g}"
            raise UsageError(f"{limits[0]} is not below {limits[1]}")
        speakers = SpeakerNumbers(self.default_speaker)
        columns = ColumnChoice(self.text_column, self.speaker_column, self.audio_column)
        names = list(map(local_name, sources))
        if remote := next(filter(is_url, names), None):
            raise UsageError(f"{remote}: training data is read from files; copy it first, as with aws s3 sync")
        files = find_datasets([Path(name).expanduser() for name in names], self.format, columns)
        return speakers, split_chunks(read_datasets(files, RowReader(speakers, columns)))


@dataclass(frozen=True)
class Encoding:
    """The model whose codec encodes the clips."""

    model: Annotated[
        str | None,
        setting("model", help="Model that will be trained; the bundled voice if not given."),
    ] = None
    revision: Annotated[str | None, setting("revision")] = None
    device: Annotated[str, setting("device", help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    offline: Annotated[bool, setting("offline")] = False
    held_out: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=0.5, help="Share of conversations held out for evaluation.")
    ] = 0.02


Sources = Annotated[list[str], typer.Argument(metavar="SOURCE", help="Folders, manifests and scripts.")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", metavar="N", min=1, max=256, help="Number of worker processes.")]


def check(
    sources: Sources,
    jobs: Jobs = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Plot the clips' durations.")] = None,
    *,
    selection: DataSelection,
    output_options: OutputOptions,
) -> None:
    """Report which clips of a dataset can be used for training, and why the others are dropped.

    Reads tables and lists of files (audiofolder, Common Voice, LJSpeech, NeMo, VITS), Parquet, WebDataset tar files,
    JSON arrays, Whisper's transcripts, recordings with a .txt file each, and csm's scripts and manifests. Shows how
    the first clips are read. Loads no model.

    \b
    Examples:
      csm data check my-recordings
      csm data check LJSpeech-1.1 --max-duration 15 --plot durations.png --json
    """
    from functools import partial

    from csm_cli.data.checks import check_chunk
    from csm_cli.data.workers import map_processes

    configure_logging(output_options)
    if plot and not _has_matplotlib():
        raise UsageError(f"--plot: {_NO_MATPLOTLIB}")
    speakers, chunks = selection.read(sources)
    examples: list[TrainingClip] = []
    report = _Report(selection, output_options)
    with report.live():
        for result in map_processes(partial(check_chunk, limits=selection.limits), _seen(chunks, examples), jobs):
            report.add(result)
    report.print_result({"speaker_names": speakers.names, "examples": _shown(examples, speakers, output_options)})
    if plot:
        report.counts.save_plot(plot.expanduser())
        emit_path(plot)
    if not report.counts.trained:
        raise NothingToLearn


def _seen(chunks: Iterator[DatasetChunk], examples: list[TrainingClip]) -> Iterator[DatasetChunk]:
    """The chunks; their first clips are added to `examples`."""
    for chunk in chunks:
        clips = [clip for item in chunk for clip in getattr(item, "clips", ()) if clip.recording]
        examples += clips[: _EXAMPLES - len(examples)]
        yield chunk


def _shown(examples: list[TrainingClip], speakers: SpeakerNumbers, options: OutputOptions) -> list[dict[str, Any]]:
    """The examples as JSON objects; prints them as they will be learned."""
    names = {number: name for name, number in speakers.names.items()}
    rows = []
    for clip in examples:
        assert clip.recording
        recording, name = clip.recording, names.get(clip.speaker)
        rows.append(
            {
                "place": clip.place,
                "file": str(recording.path),
                "start_s": recording.start,
                "end_s": recording.end,
                "speaker": clip.speaker,
                "name": name,
                "text": clip.text,
            }
        )
        if not options.quiet and not options.json:
            span = "" if recording.start is None else f" {recording.start:g} to {recording.end or 'its end'} s"
            speaker = f"speaker {clip.speaker}" + (f" ({name})" if name is not None else "")
            log_line(f'{recording.path.name}{span}, {speaker}: "{shorten(clip.text, 100)}"')
    return rows


def prepare(
    sources: Sources,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the prepared data.")],
    jobs: Jobs = 1,
    *,
    encoding: Encoding,
    selection: DataSelection,
    output_options: OutputOptions,
) -> None:
    """Encode a dataset to codes, once, for csm train; an interrupted run resumes.

    Codes that csm batch --save-codes has saved are used as they are, if the model's codec made them.
    DIR/dropped.jsonl lists the dropped clips, DIR/report.json the totals.

    \b
    Examples:
      csm data prepare my-recordings -o data/prepared
      csm data prepare LJSpeech-1.1 -o data/lj --model unsloth/csm-1b --device cuda --held-out 0.05
    """
    configure_logging(output_options)
    folder = output.expanduser()
    speakers, chunks = selection.read(sources)
    if not output_options.quiet:
        log_line(f"loading {encoding.model or 'the bundled voice'} ...")
    from csm_cli.data.prepare import EncodingConfig, Preparation
    from csm_cli.data.store import open_store

    config = EncodingConfig(
        model=encoding.model,
        revision=encoding.revision,
        device=encoding.device,
        limits=selection.limits,
        held_out=encoding.held_out,
        offline=encoding.offline,
    )
    preparation = Preparation(folder, config, jobs)
    report = _Report(selection, output_options)
    with report.live("; finished parts are saved, run the same command to resume"):
        for progress in preparation.run(chunks, speakers):
            report.add(progress.result, progress.resumed)
    report.counts.save(folder)
    if _has_matplotlib():
        report.counts.save_plot(folder / "durations.png")
    elif not output_options.quiet:
        log_line(f"durations.png is not plotted: {_NO_MATPLOTLIB}")
    examples, held_out = len(open_store(folder)), len(open_store(folder, held_out=True))
    if encoding.held_out and not held_out:
        warn(f"none of {examples} examples is held out for evaluation; use a larger --held-out")
    sizes = {"examples": examples, "held_out": held_out, "hours_per_hour": report.hours_per_hour}
    report.print_result({"output": str(folder), "speaker_names": speakers.names, **sizes})
    if not output_options.json:
        emit_path(folder)


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


class _Report:
    """Counts of the run so far: shown while it runs, printed at the end."""

    def __init__(self, selection: DataSelection, output_options: OutputOptions) -> None:
        from csm_cli.data.dataset import DatasetCounts

        self.counts: DatasetCounts = DatasetCounts()
        self._max_lines = float("inf") if selection.all else _LINES_PER_REASON
        self._output_options = output_options
        self._lines: Counter[str] = Counter()  # printed for each reason
        self._status: Status | None = None
        self._encoded_seconds = 0.0  # of audio, in this run
        self._start = time.perf_counter()

    @contextmanager
    def live(self, hint: str = "") -> Iterator[None]:
        """A status line on a terminal; after an interruption, prints the counts so far."""
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True)
        try:
            if self._output_options.quiet or not console.is_terminal:
                yield
                return
            with console.status("") as self._status:
                yield
        except NothingToLearn:
            raise
        except BaseException:
            if not self._output_options.quiet and self.counts.clips:
                log_line(f"interrupted; {self}{hint}")
            raise

    def add(self, result: ChunkResult, resumed: bool = False) -> None:
        self.counts.add(result)
        self._encoded_seconds += 0.0 if resumed else sum(seconds for _, seconds in result.usable)
        for clip in result.dropped:
            self._lines[clip.reason] += 1
            if self._lines[clip.reason] <= self._max_lines and not self._output_options.quiet:
                warn(str(clip))
        for kind, line in result.warnings:
            self._lines[f"warned: {kind}"] += 1
            if self._lines[f"warned: {kind}"] <= self._max_lines and not self._output_options.quiet:
                warn(line)
        if self._status:
            self._status.update(str(self))
        elif not self._output_options.quiet:
            log_line(str(self))

    @property
    def hours_per_hour(self) -> float:
        """Hours of audio encoded per hour of this run."""
        return round(self._encoded_seconds / (time.perf_counter() - self._start), 1)

    def print_result(self, more: dict[str, Any]) -> None:
        """A table, or JSON with `more`."""
        if self._output_options.json:
            emit_json({**self.counts.to_json(), **more})
        elif not self._output_options.quiet:
            from rich.console import Console
            from rich.table import Table

            table = Table("", "clips", "hours")
            table.add_row("usable", str(self.counts.clips), f"{self.counts.seconds / 3600:.3f}")
            for reason, (clips, seconds) in self.counts.by_reason.items():
                table.add_row(f"dropped: {reason}", str(clips), f"{seconds / 3600:.3f}" if seconds else "-")
            if self.counts.reused:
                table.add_row("of them with saved codes, not encoded again", str(self.counts.reused), "-")
            for kind, clips in sorted(self.counts.warnings.items()):
                table.add_row(f"usable, with a warning: {kind}", str(clips), "-")
            Console(stderr=True).print(table)

    def __str__(self) -> str:
        minutes = self.counts.seconds / 60
        length = f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.2f} h"
        return f"{self.counts.clips} clips usable, {length}; {len(self.counts.dropped)} dropped"


data = typer.Typer(name="data", help="Check recorded speech and prepare it for training.", no_args_is_help=True)
for command in (check, prepare):
    data.command()(command)
