"""csm batch: one audio file per manifest row, resumable. csm merge: the shards of a batch in one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from csm_cli.batch.items import (
    BatchItem,
    Counts,
    OutputPattern,
    Shard,
    check_outputs,
    select_items,
    with_fingerprint,
)
from csm_cli.batch.ledger import LEDGER, Ledger
from csm_cli.batch.merge import merge_ledgers
from csm_cli.batch.results import ItemResult
from csm_cli.batch.shards import ShardPattern, ShardWriter, is_shard_pattern
from csm_cli.cli.audio_options import AudioOptions
from csm_cli.cli.batch_engine import Loader, SynthesisEngine, automatic_slots
from csm_cli.cli.batch_plan import PlanOptions, print_estimate, print_plan
from csm_cli.cli.batch_workers import BatchSetup, WorkerOptions, WorkerPool, make_executor
from csm_cli.cli.console import emit_json, emit_path, log_line, warn
from csm_cli.cli.options import ManifestOptions, OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.output_files import EmbedAudio, ReportFile, report_request
from csm_cli.cli.progress import Meter, ProgressMeter, show_progress
from csm_cli.cli.summary import contention_hint, summarize
from csm_cli.cli.synthesis import find_checkpoint, make_job, open_synthesizer, with_settings
from csm_cli.errors import BatchPartlyFailed, GenerationFailed, OutputRefused, UsageError
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.report import format_count
from csm_cli.storage.outputs import open_outputs
from csm_cli.storage.remote import is_url, local_name

if TYPE_CHECKING:
    from csm_cli.batch.executor import Executor
    from csm_cli.report.page import ReportRequest

_MAX_BATCH_SIZE = 1024
ExecutorMaker = Callable[[WorkerOptions, BatchSetup, int], "Executor"]
"""Makes workers for so many items."""
_DEFAULT_AUDIO = AudioOptions()
_ONE_PROCESS = WorkerOptions()


@dataclass(frozen=True)
class BatchScope:
    """Which rows a run generates, how it writes them, and when it gives up."""

    force: Annotated[bool, typer.Option("--force", help="Generate items again that are done.")] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only items that failed before, with seeds not tried yet.")
    ] = False
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Generate at most N items in this run.")
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="i/n|slurm", help="Every n-th row from the i-th; slurm, slurm/n: task of an array."
        ),
    ] = None
    shard_size: Annotated[
        int,
        typer.Option(
            "--shard-size",
            metavar="N",
            min=1,
            help="Items of each file of -o 'part-{shard:05d}.tar' or .parquet.",
            rich_help_panel="Output",
        ),
    ] = 1000
    save_codes: Annotated[
        bool, typer.Option("--save-codes", help="Write the codes of each item too.", rich_help_panel="Output")
    ] = False
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel="Failures")
    ] = False
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", metavar="N", min=1, help="Stop after N failures.", rich_help_panel="Failures"),
    ] = None

    def shard_pattern(self, output: str) -> ShardPattern | None:
        """Where items are packed; None where each one has a file. Raises UsageError: an impossible pattern."""
        return ShardPattern(output, self.shard_size) if is_shard_pattern(output) else None

    def select(self, items: Iterable[BatchItem], ledger: Ledger, counts: Counts) -> Iterator[BatchItem]:
        exists = ledger.outputs.exists
        return select_items(items, ledger.entries, counts, self.force, self.retry_failed, self.limit, exists)


def batch(
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST", help="JSONL, JSON, CSV, Parquet or text lines, or its URL; - is standard input."
        ),
    ],
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="auto|N", help="Items decoded together; auto: by free memory.")
    ] = "auto",
    report: ReportFile = None,
    embed: EmbedAudio = False,
    *,
    scope: BatchScope,
    rows: ManifestOptions,
    speech: SynthesisFlags,
    output: OutputFile,
    audio: AudioOptions,
    output_options: OutputOptions,
    workers: WorkerOptions,
    plan: PlanOptions,
) -> None:
    """Generate one audio file per manifest row.

    Fields of -o: {id}, {index} (from 1), {speaker}, {shard}.

    Finished items are recorded in results.jsonl beside the files,
    with the columns of their rows that csm does not use;
    the same command again generates only the rest.

    Examples:
      csm batch lines.jsonl -o 'out/{id}.wav'
      csm batch game.csv -o 'out/{speaker}/{id}.wav' --text-column line --speaker-column character
      csm batch s3://bucket/lines.jsonl -o 's3://bucket/out/{id}.wav'
    """
    source = local_name(manifest), rows
    output = replace(output, output=output.output and local_name(output.output))
    if plan.estimate:
        print_estimate(source, plan, output_options)
        return
    if plan.plan:
        print_plan(source, scope.shard, speech, output, output_options, audio)
        return
    page = report_request(report, embed)
    run_batch(source, batch_size, scope, speech, output, output_options, page, workers=workers, audio=audio)


def merge(
    folders: Annotated[list[str], typer.Argument(metavar="DIR", help="Folders or URLs that csm batch has written to.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="The folder or URL to merge them into.")],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the path of the results.")] = False,
) -> None:
    """Merge the shards of a batch into one folder: files and results.

    csm batch can go on there as if one run had generated it all. Tar and Parquet files are copied whole;
    those of one name get new numbers.
    """
    target = open_outputs(local_name(output))
    ok, failed = merge_ledgers([open_outputs(local_name(folder)) for folder in folders], target)
    if not quiet:
        log_line(f"{ok} done, {failed} failed, from {format_count(len(folders), 'folder')}")
    emit_path(target.location(target.folder / LEDGER))


def run_batch(
    source: tuple[str, ManifestOptions],
    batch_size: str,
    scope: BatchScope,
    speech: SynthesisFlags,
    output: OutputFile,
    output_options: OutputOptions,
    report: ReportRequest | None = None,
    load: Loader = open_synthesizer,
    workers: WorkerOptions = _ONE_PROCESS,
    audio: AudioOptions = _DEFAULT_AUDIO,
    executor: ExecutorMaker = make_executor,
) -> None:
    """Runs a batch; every row is checked before anything is loaded.

    source: the manifest and what its columns mean. load: makes the synthesizer; with workers, a function of a module.
    executor: makes the workers.

    Raises:
        ScriptInvalid: with all diagnostics of all rows.
        InputError, UsageError: outputs that collide, are inputs or cannot be written, or impossible options.
        BatchPartlyFailed, GenerationFailed: some items failed, or all.
    """
    from csm_cli.script import Manifest

    shard = Shard.read(scope.shard, os.environ) if scope.shard else Shard()
    slots = _batch_size(batch_size)
    workers.check()
    packing, pattern = _output_pattern(output, scope, shard, report, audio)
    outputs = pattern.outputs
    encoding, delivery = audio.for_output(output), audio.delivery(output)
    audio.check_word_times(speech, True)
    job = replace(make_job((), speech, output_options, word_times=audio.word_times), encoding=encoding)
    name, rows = source
    manifest = Manifest(name, None, rows.columns, rows.read_header())
    named = map(audio.of_item, pattern.items(manifest.checked()))
    checked = workers.checked(check_outputs(named, [manifest.path] if manifest.path else (), encoding))
    counts = Counts.of(shard.of(checked))
    checkpoint = find_checkpoint(job)
    synthesis = SynthesisSetup(checkpoint, job.flags, job.retry_policy, speech.verify)

    def items() -> Iterator[BatchItem]:
        rows = shard.of(pattern.items(with_settings(manifest, speech)))
        return (audio.of_item(with_fingerprint(each, synthesis, delivery)) for each in rows)

    with Ledger(outputs) as ledger, closing(ShardWriter(packing, ledger)) if packing else nullcontext() as shards:
        if ledger.entries or output.no_clobber or scope.retry_failed or scope.limit:
            counts = Counts()
            for item in scope.select(items(), ledger, counts):
                if shards:
                    shards.check(item)
                if output.no_clobber and outputs.exists(item.path):
                    hint = "leave out --no-clobber to replace it"
                    raise OutputRefused(f"{outputs.location(item.path)}: exists already; {hint}")
        job = replace(job, flags=replace(job.flags, seed=None), slots=slots)  # the items have their seeds
        failures_allowed = 1 if scope.fail_fast else scope.max_failures or float("inf")
        run = BatchRun(output_options, ledger, counts, failures_allowed, shards)
        if counts.selected:
            selected = islice(scope.select(items(), ledger, Counts()), counts.selected)
            setup = BatchSetup(job, checkpoint, outputs, load, scope.save_codes)
            engine: BatchEngine
            if workers.chosen:
                engine = WorkerPool(executor(workers, setup, counts.selected), setup, counts)
            else:
                engine = LocalEngine(setup, counts)
            run.generate(selected, engine)
        elif not output_options.quiet:
            log_line(f"nothing to speak; {run.summary()}")
        run.pack_rest()
        if report:
            _write_report(report, ledger, (item.id for item in shard.of(pattern.items(manifest))))
    run.raise_failures()


def _output_pattern(
    output: OutputFile, scope: BatchScope, shard: Shard, report: ReportRequest | None, audio: AudioOptions
) -> tuple[ShardPattern | None, OutputPattern]:
    """Where items are packed, if they are, and the name of each. Raises UsageError: an option excludes it."""
    if not output.output or output.output == "-":
        raise UsageError("batch writes files; name them as in -o 'out/{id}.wav'")
    packing = scope.shard_pattern(output.output)
    if packing and (scope.shard or report):
        raise UsageError(f"{'--shard' if scope.shard else '--report'} needs a file for each item; name them {{id}}.wav")
    pattern = packing.items if packing else OutputPattern(output.output, shard.index)
    if report and is_url(pattern.outputs.location(pattern.outputs.folder)):
        raise UsageError("--report links to files of this machine; name a folder with -o, or copy the outputs to one")
    if packing and (audio.format or audio.subs):
        raise UsageError(f"{'--format' if audio.format else '--subs'} needs a file for each item; shards hold flac")
    return packing, pattern


def _write_report(report: ReportRequest, ledger: Ledger, ids: Iterable[str]) -> None:
    from csm_cli.report.page import BatchOrder, write_batch_report

    write_batch_report(report, ledger.latest, ledger.path, BatchOrder(ids, ledger.new_ids()))


def _batch_size(text: str) -> int:
    """0 for auto. Raises UsageError for anything but auto and a number in range."""
    size = 0 if text == "auto" else int(text) if text.isdecimal() and len(text) < 5 else -1
    if text != "auto" and not 1 <= size <= _MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size takes auto or a whole number from 1 to {_MAX_BATCH_SIZE}, not {text!r}")
    return size


class BatchEngine(Protocol):
    """What a run generates items with."""

    @property
    def meter(self) -> Meter:
        """Counts what is generated."""

    def results(self, items: Iterator[BatchItem]) -> Generator[ItemResult, None, None]:
        """As `ItemEngine`."""

    def summary(self) -> str:
        """One line on all that was generated."""

    def hint(self) -> str:
        """One line on what would be faster, else empty."""


class LocalEngine(SynthesisEngine):
    """Generates items in this process."""

    def __init__(self, batch: BatchSetup, counts: Counts) -> None:
        slots = batch.job.slots or automatic_slots(batch.job, batch.checkpoint)
        job = replace(batch.job, slots=min(slots, counts.selected))
        self._synth = batch.load(job, batch.checkpoint)
        self.meter = ProgressMeter((), self._synth.codec.frame_rate, lambda: counts.chars, counts.total)
        self.meter.finished_items = counts.done
        super().__init__(self._synth, job, self.meter, batch.outputs, batch.save_codes)

    def summary(self) -> str:
        return summarize(self.meter, self._synth.checkpoint.name, self._synth.device)

    def hint(self) -> str:
        return contention_hint(self._job, self._synth)


class BatchRun:
    """Records the results of the selected items of a batch; stops after `failures_allowed` failures."""

    def __init__(
        self,
        output_options: OutputOptions,
        ledger: Ledger,
        counts: Counts,
        failures_allowed: float,
        shards: ShardWriter | None = None,
    ) -> None:
        self._shards = shards
        self._ledger, self._counts, self._failures_allowed = ledger, counts, failures_allowed
        self._quiet, self._json = output_options.quiet, output_options.json
        self._active: dict[str, BatchItem] = {}  # items that were handed to the engine
        self._written = self._failed = 0

    def generate(self, selected: Iterator[BatchItem], engine: BatchEngine) -> None:
        try:
            with show_progress(engine.meter, self._quiet), closing(engine.results(self._start(selected))) as results:
                for result in results:
                    self._record(result)
                    if self._failed >= self._failures_allowed:
                        break
            self._ledger.flush()
        except BrokenPipeError:
            warn("standard output was closed; the same command generates the rest")
            raise
        finally:
            if not self._quiet:
                log_line(f"{self.summary()}; {engine.summary()}")
                if hint := engine.hint():
                    log_line(hint)

    def summary(self) -> str:
        """Such as `200 items: 17 written, 180 reused, 1 failed, 2 left`."""
        left = self._left
        parts = ((self._written, "written"), (self._counts.done, "reused"), (self._failed, "failed"), (left, "left"))
        states = ", ".join(f"{count} {state}" for count, state in parts if count)
        return f"{format_count(self._counts.total, 'item')}: {states or 'none'}"

    @property
    def _left(self) -> int:
        return self._counts.total - self._counts.done - self._written - self._failed

    def raise_failures(self) -> None:
        """Raises BatchPartlyFailed where items failed; GenerationFailed where none is done."""
        if self._failed:
            kind = BatchPartlyFailed if self._written or self._counts.done else GenerationFailed
            tried = self._written + self._failed
            stopped = ", the rest were not tried" if tried < self._counts.selected else ""
            raise kind(f"{self._failed} of {format_count(tried, 'item')} failed{stopped}; the lines above say why")

    def _start(self, selected: Iterator[BatchItem]) -> Iterator[BatchItem]:
        for item in selected:
            self._active[item.id] = item
            yield item

    def _record(self, result: ItemResult) -> None:
        """Appends a result to the ledger and prints it."""
        item, record = self._active.pop(result.id), result.record
        if result.ok:
            record = record | {"file": item.file, "fingerprint": item.fingerprint}
            self._ledger.append(record, result.files)
            self._written += 1
            if self._shards:
                self._shards.add(record)
                self._print_shards(self._shards.pack())
        else:
            self._ledger.append(record | {"fingerprint": item.fingerprint})
            self._failed += 1
        if not self._quiet:
            done = self._counts.done + self._written + self._failed
            for line in result.lines:
                log_line(f"[{done} of {self._counts.total}] {item.id}: {line}")
        for warning in result.warnings:
            warn(f"{item.id}: {warning}")
        if self._json:
            emit_json(result.record)
        elif result.ok and not self._shards:
            emit_path(self._ledger.outputs.location(item.path))

    def pack_rest(self) -> None:
        """Packs the last items into a shard, if none is left to generate; waits for all shards."""
        if self._shards:
            self._print_shards(self._shards.pack(all_items=not self._left, wait=True))

    def _print_shards(self, paths: Sequence[Path]) -> None:
        for path in () if self._json else paths:
            emit_path(self._ledger.outputs.location(path))
