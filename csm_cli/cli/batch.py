"""csm batch: a manifest, many lines at a time, one file each; a run that was cut off goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.batch import (
    BatchItem,
    Counts,
    Fingerprinter,
    Ledger,
    OutputNames,
    OutputPattern,
    Selection,
    Shard,
    conversation_chars,
    select_items,
)
from csm_cli.cli.batch_run import BatchRun
from csm_cli.cli.console import log_line
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.output_files import ReportFile, report_path
from csm_cli.cli.synthesis import (
    SynthesisJob,
    find_checkpoint,
    make_job,
    open_synthesizer,
    pick_device_and_dtype,
    with_settings,
)
from csm_cli.errors import UsageError
from csm_cli.generation.fingerprint import SynthesisSetup

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.script import Manifest

_MOST = 1024


def _part(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Which lines", **more)


@dataclass(frozen=True)
class BatchScope:
    """Which lines this run speaks, and when it gives up."""

    force: Annotated[bool, _part("--force", text="Speak again what is done.")] = False
    retry_failed: Annotated[bool, _part("--retry-failed", text="Only what failed before.")] = False
    limit: Annotated[int | None, _part("--limit", text="At most N lines in this run.", metavar="N", min=1)] = None
    shard: Annotated[
        str | None, _part("--shard", text="Every n-th line from the i-th; slurm reads its array.", metavar="i/n|slurm")
    ] = None
    fail_fast: Annotated[bool, _part("--fail-fast", text="Stop at the first failure.")] = False
    max_failures: Annotated[int | None, _part("--max-failures", text="Stop after N failures.", metavar="N", min=1)] = (
        None
    )

    @property
    def choice(self) -> Selection:
        return Selection(self.force, self.retry_failed, self.limit)

    @property
    def patience(self) -> float:
        """How many failures end the run."""
        return 1 if self.fail_fast else self.max_failures or float("inf")

    def part(self) -> Shard:
        return Shard.read(self.shard, os.environ) if self.shard else Shard()


@dataclass(frozen=True)
class BatchRequest:
    """A batch as it was asked for."""

    manifest: str
    batch_size: str
    scope: BatchScope
    speech: SynthesisFlags
    output: OutputFile
    output_options: OutputOptions
    report: Path | None = None


def batch(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="JSONL, CSV or text lines; - is standard input.")],
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="auto|N", help="Items decoded together; auto goes by free memory.")
    ] = "auto",
    report: ReportFile = None,
    *,
    scope: BatchScope,
    speech: SynthesisFlags,
    output: OutputFile,
    output_options: OutputOptions,
) -> None:
    """Speak the lines of a manifest, each to a file such as -o 'out/{id}.wav'.

    The output's fields are {id}, {index} (from 1), {speaker} and {shard}. What is done is recorded in results.jsonl
    beside the files; the same command again speaks the rest.
    """
    run(BatchRequest(manifest, batch_size, scope, speech, output, output_options, report_path(report)))


def run(order: BatchRequest, load: Callable[[SynthesisJob, Checkpoint], Synthesizer] = open_synthesizer) -> None:
    """Fills an order. Every line is checked before anything is loaded; `load` makes a synthesizer of a checkpoint."""
    from csm_cli.script import Manifest

    shard = order.scope.part()
    size, pattern = _size(order.batch_size), _pattern(order.output, shard)
    job = make_job((), order.speech, order.output_options)
    work = _Work(Manifest(order.manifest), pattern, shard)
    total = work.check()
    checkpoint = find_checkpoint(job)
    job = replace(job, slots=size or _auto(job, checkpoint))
    marker, choice = (
        Fingerprinter(SynthesisSetup(checkpoint, job.flags, job.retry_policy, order.speech.verify)),
        order.scope.choice,
    )
    with Ledger(pattern.folder) as ledger:
        if order.output.no_clobber:
            _refuse_existing(select_items(work.items(marker), ledger.entries, choice, Counts()))
        tally = Counts()
        chosen = select_items(work.items(marker), ledger.entries, choice, tally)
        spoken = BatchRun(job, ledger, tally, order.scope.patience, order.report)
        spoken.go(chosen, lambda slots: load(replace(job, slots=slots), checkpoint), total)


@dataclass(frozen=True)
class _Work:
    """The lines of one shard of a manifest, where they go, and how they are spoken."""

    manifest: Manifest
    pattern: OutputPattern
    shard: Shard

    def check(self) -> int:
        """Reads every line of the manifest; returns how many characters the shard's have.

        Raises:
            ScriptInvalid: with every diagnostic about every line.
            InputError, UsageError: names that collide, are read or cannot be written.
        """
        names, total = OutputNames([self.manifest.path] if self.manifest.path else ()), 0
        for number, item in enumerate(self.pattern.items(self.manifest.checked())):
            names.add(item)
            if number % self.shard.count == self.shard.index - 1:
                total += conversation_chars(item.conversation)
        names.settle()
        return total

    def items(self, marker: Fingerprinter) -> Iterator[BatchItem]:
        return map(marker.mark, self.shard.of(self.pattern.items(with_settings(self.manifest))))


def _size(text: str) -> int:
    """0 for auto.

    Raises:
        UsageError: neither that nor a number that makes sense.
    """
    size = 0 if text == "auto" else int(text) if text.isdecimal() and len(text) < 5 else -1
    if not (size == 0 and text == "auto") and not 1 <= size <= _MOST:
        raise UsageError(f"--batch-size takes auto or a whole number from 1 to {_MOST}, not {text!r}")
    return size


def _auto(job: SynthesisJob, checkpoint: Checkpoint) -> int:
    from csm_cli.engine.memory_estimate import estimate_memory

    found = estimate_memory(checkpoint.config, checkpoint.weights.files, *pick_device_and_dtype(job.speech))
    if not job.output_options.quiet:
        log_line(f"up to {found.slots} items at once (--batch-size auto: {found})")
    return found.slots


def _pattern(output: OutputFile, shard: Shard) -> OutputPattern:
    """Raises UsageError where the output is none, a pipe, or has fields there are not."""
    name = output.output
    if not name or output.path is None:
        raise UsageError("batch writes files; name them as in -o 'out/{id}.wav'")
    return OutputPattern(name, shard.index)


def _refuse_existing(items: Iterator[BatchItem]) -> None:
    from csm_cli.audio.io import check_output

    for item in items:
        check_output(item.path, clobber=False)
