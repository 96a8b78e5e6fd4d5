"""csm batch: one audio file per manifest row, resumable. csm merge: the shards of a batch in one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from csm_cli.batch.ledger import LEDGER, Ledger, merge_ledgers
from csm_cli.cli.console import emit_json, emit_path, log_line, warn
from csm_cli.cli.options import ManifestOptions, OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.output_files import ReportFile, report_path
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.cli.summary import (
    contention_hint,
    conversation_record,
    describe_utterance,
    summarize,
    turn_warnings,
)
from csm_cli.cli.synthesis import (
    FinishedConversation,
    SynthesisJob,
    find_checkpoint,
    make_job,
    open_synthesizer,
    pick_device_and_dtype,
    speak,
    with_settings,
)
from csm_cli.errors import BatchPartlyFailed, CsmError, GenerationFailed, OutputFailed, UsageError, failure_of
from csm_cli.generation.events import ConversationFailed, audio_tags
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.report import format_count
from csm_cli.storage.files import write_atomically
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.synthesizer import Synthesizer

_MAX_BATCH_SIZE = 1024


@dataclass(frozen=True)
class BatchScope:
    """Which rows a run generates, and when it gives up."""

    force: Annotated[bool, typer.Option("--force", help="Generate items again that are done.")] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only items that failed before, with seeds not tried yet.")
    ] = False
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Generate at most N items in this run.")
    ] = None
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="i/n|slurm", help="Every n-th row from the i-th; slurm: from its job array."),
    ] = None
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel="Failures")
    ] = False
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", metavar="N", min=1, help="Stop after N failures.", rich_help_panel="Failures"),
    ] = None

    def select(self, items: Iterable[BatchItem], ledger: Ledger, counts: Counts) -> Iterator[BatchItem]:
        return select_items(items, ledger.entries, counts, self.force, self.retry_failed, self.limit)


def batch(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="JSONL, JSON, CSV or text lines; - is standard input.")
    ],
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="auto|N", help="Items decoded together; auto: by free memory.")
    ] = "auto",
    report: ReportFile = None,
    *,
    scope: BatchScope,
    rows: ManifestOptions,
    speech: SynthesisFlags,
    output: OutputFile,
    output_options: OutputOptions,
) -> None:
    """Generate one audio file per manifest row.

    Fields of -o: {id}, {index} (from 1), {speaker}, {shard}.

    Finished items are recorded in results.jsonl beside the files,
    with the columns of their rows that csm does not use;
    the same command again generates only the rest.

    Examples:
      csm batch lines.jsonl -o 'out/{id}.wav'
      csm batch game.csv -o 'out/{speaker}/{id}.wav' --text-column line --speaker-column character
    """
    run_batch((manifest, rows), batch_size, scope, speech, output, output_options, report_path(report))


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders that csm batch has written to.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to merge them into.")],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the path of the results.")] = False,
) -> None:
    """Merge the shards of a batch into one folder: files and results.

    csm batch can go on there as if one run had generated it all.
    """
    target = output.expanduser()
    ok, failed = merge_ledgers([folder.expanduser() for folder in folders], target)
    if not quiet:
        log_line(f"{ok} done, {failed} failed, from {format_count(len(folders), 'folder')}")
    emit_path(target / LEDGER)


def run_batch(
    source: tuple[str, ManifestOptions],
    batch_size: str,
    scope: BatchScope,
    speech: SynthesisFlags,
    output: OutputFile,
    output_options: OutputOptions,
    report: Path | None = None,
    load: Callable[[SynthesisJob, Checkpoint], Synthesizer] = open_synthesizer,
) -> None:
    """Runs a batch; every row is checked before anything is loaded.

    source: the manifest and what its columns mean. load: makes the synthesizer.

    Raises:
        ScriptInvalid: with all diagnostics of all rows.
        InputError, UsageError: outputs that collide, are inputs or cannot be written, or impossible options.
        BatchPartlyFailed, GenerationFailed: some items failed, or all.
    """
    from csm_cli.audio.io import check_output
    from csm_cli.script import Manifest

    shard = Shard.read(scope.shard, os.environ) if scope.shard else Shard()
    slots = _batch_size(batch_size)
    if not output.output or output.path is None:
        raise UsageError("batch writes files; name them as in -o 'out/{id}.wav'")
    pattern = OutputPattern(output.output, shard.index)
    job = make_job((), speech, output_options)
    name, rows = source
    manifest = Manifest(name, None, rows.columns, rows.read_header())
    counts = Counts()  # of a shard that is selected whole
    checked = check_outputs(pattern.items(manifest.checked()), [manifest.path] if manifest.path else ())
    for number, item in enumerate(checked):
        if number % shard.count == shard.index - 1:
            counts.total, counts.chars = counts.total + 1, counts.chars + item.chars
    counts.selected = counts.total
    checkpoint = find_checkpoint(job)
    setup = SynthesisSetup(checkpoint, job.flags, job.retry_policy, speech.verify)

    def items() -> Iterator[BatchItem]:
        return (with_fingerprint(each, setup) for each in shard.of(pattern.items(with_settings(manifest, speech))))

    with Ledger(pattern.folder) as ledger:
        if ledger.entries or output.no_clobber or scope.retry_failed or scope.limit:
            counts = Counts()
            for item in scope.select(items(), ledger, counts):
                if output.no_clobber:
                    check_output(item.path, clobber=False)
        job = replace(job, flags=replace(job.flags, seed=None))  # the items have their seeds
        run = BatchRun(job, ledger, counts, 1 if scope.fail_fast else scope.max_failures or float("inf"))
        if counts.selected:
            slots = slots or _auto_batch_size(job, checkpoint)
            job = replace(job, slots=min(slots, counts.selected))
            selected = islice(scope.select(items(), ledger, Counts()), counts.selected)
            run.generate(selected, load(job, checkpoint))
        elif not output_options.quiet:
            log_line(f"nothing to speak; {run.summary()}")
        if report:
            from csm_cli.report.page import write_batch_report

            write_batch_report(report, ledger.latest, ledger.path)
    run.raise_failures()


def _batch_size(text: str) -> int:
    """0 for auto. Raises UsageError for anything but auto and a number in range."""
    size = 0 if text == "auto" else int(text) if text.isdecimal() and len(text) < 5 else -1
    if text != "auto" and not 1 <= size <= _MAX_BATCH_SIZE:
        raise UsageError(f"--batch-size takes auto or a whole number from 1 to {_MAX_BATCH_SIZE}, not {text!r}")
    return size


def _auto_batch_size(job: SynthesisJob, checkpoint: Checkpoint) -> int:
    from csm_cli.engine.memory_estimate import estimate_memory

    device, dtype = pick_device_and_dtype(job.speech)
    estimate = estimate_memory(checkpoint.config, device, dtype, int8=job.speech.quantize == "int8")
    if not job.output_options.quiet:
        log_line(f"up to {estimate.slots} items at once (--batch-size auto: {estimate})")
    return estimate.slots


class BatchRun:
    """Generates, writes and records the selected items of a batch; stops after `failures_allowed` failures."""

    def __init__(self, job: SynthesisJob, ledger: Ledger, counts: Counts, failures_allowed: float) -> None:
        self._job, self._ledger, self._counts, self._failures_allowed = job, ledger, counts, failures_allowed
        self._quiet = job.output_options.quiet
        self._active: dict[str, BatchItem] = {}  # by conversation id
        self._written = self._failed = 0

    def generate(self, selected: Iterator[BatchItem], synth: Synthesizer) -> None:
        counts = self._counts
        meter = ProgressMeter((), synth.codec.frame_rate, lambda: counts.chars, counts.total)
        meter.finished_items = counts.done
        try:
            with show_progress(meter, self._quiet):
                for event in speak(synth, self._job, meter, self._conversations(selected)):
                    if isinstance(event, FinishedConversation):
                        self._write(self._active.pop(event.conversation.id), event, synth)
                    elif isinstance(event, ConversationFailed):
                        seeds = [take.seed for take in event.takes]
                        self._record_failure(self._active.pop(event.conversation.id), event.error, seeds)
                    if self._failed >= self._failures_allowed:
                        break
            self._ledger.flush()
        except BrokenPipeError:
            warn("standard output was closed; the same command generates the rest")
            raise
        finally:
            if not self._quiet:
                log_line(f"{self.summary()}; {summarize(meter, synth.checkpoint.name, synth.device)}")
                if hint := contention_hint(self._job, synth):
                    log_line(hint)

    def summary(self) -> str:
        """Such as `200 items: 17 written, 180 reused, 1 failed, 2 left`."""
        left = self._counts.total - self._counts.done - self._written - self._failed
        parts = ((self._written, "written"), (self._counts.done, "reused"), (self._failed, "failed"), (left, "left"))
        states = ", ".join(f"{count} {state}" for count, state in parts if count)
        return f"{format_count(self._counts.total, 'item')}: {states or 'none'}"

    def raise_failures(self) -> None:
        """Raises BatchPartlyFailed where items failed; GenerationFailed where none is done."""
        if self._failed:
            kind = BatchPartlyFailed if self._written or self._counts.done else GenerationFailed
            tried = self._written + self._failed
            stopped = ", the rest were not tried" if tried < self._counts.selected else ""
            raise kind(f"{self._failed} of {format_count(tried, 'item')} failed{stopped}; the lines above say why")

    def _conversations(self, selected: Iterator[BatchItem]) -> Iterator[Conversation]:
        for item in selected:
            if item.error:
                self._record_failure(item, item.error, [])
                continue
            self._active[item.id] = item
            yield item.conversation

    def _write(self, item: BatchItem, finished: FinishedConversation, synth: Synthesizer) -> None:
        from csm_cli.audio.io import encode_audio

        try:
            tags = audio_tags(finished.utterances, synth.checkpoint, finished.conversation.title)
            record = conversation_record(finished, str(item.path), synth.checkpoint, str(synth.device))
            data = encode_audio(item.path, finished.track.audio, tags)
        except BaseException as problem:
            self._record_failure(item, failure_of(problem), [])
            return
        try:
            write_atomically(item.path, data, flush=False)
        except OutputFailed:
            raise  # a full disk would fail all other items too
        except CsmError as error:
            self._record_failure(item, error, [])
            return
        record |= _extra(item)
        del record["rtf"]  # items are decoded together: the time of one says nothing about its own cost
        self._ledger.append(record | {"file": item.file, "fingerprint": item.fingerprint}, item.path)
        self._written += 1
        if not self._quiet:
            done = self._counts.done + self._written + self._failed
            for utterance in finished.utterances:
                log_line(f"[{done} of {self._counts.total}] {item.id}: {describe_utterance(utterance, batched=True)}")
        for warning in turn_warnings(finished):
            warn(f"{item.id}: {warning}")
        if self._job.output_options.json:
            emit_json(record)
        else:
            emit_path(item.path)

    def _record_failure(self, item: BatchItem, error: CsmError, seeds: list[int]) -> None:
        turns = [{"speaker": turn.label, "text": turn.text} for turn in item.conversation.turns]
        record: dict[str, Any] = {"id": item.id, "status": "failed", "output": None, "error": str(error)}
        record |= {"error_class": error.kind, "seeds_tried": seeds, "turns": turns} | _extra(item)
        self._ledger.append(record | {"fingerprint": item.fingerprint})
        self._failed += 1
        warn(f"{item.id}: {error}")
        if self._job.output_options.json:
            emit_json(record)


def _extra(item: BatchItem) -> dict[str, Any]:
    """The other columns of an item's row."""
    return {"extra": dict(item.conversation.extra)} if item.conversation.extra else {}
