"""`csm batch --plan`: what remains, by shard, and the Slurm array for it. `--estimate`: hours and cost elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from csm_cli.batch.estimate import SPEEDS, BatchEstimate
from csm_cli.batch.items import OutputPattern, Shard, check_outputs, with_fingerprint
from csm_cli.batch.plan import BatchPlan, ShardPlan
from csm_cli.batch.shards import ShardPattern, is_shard_pattern
from csm_cli.cli.audio_options import AudioOptions
from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.options import ManifestOptions, OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.synthesis import find_checkpoint, make_job, with_settings
from csm_cli.errors import UsageError
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.report import format_duration, format_ranges

_PANEL = "Plan"


@dataclass(frozen=True)
class PlanOptions:
    """What is printed instead of generating."""

    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what remains, by shard; generate nothing.", rich_help_panel=_PANEL),
    ] = False
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Print hours, storage and cost on machines that are not here.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", min=1, help="Devices of --estimate.", rich_help_panel=_PANEL)
    ] = 1
    gpu: Annotated[
        str,
        typer.Option("--gpu", metavar="|".join(SPEEDS), help="Their kind; cpu: one core.", rich_help_panel=_PANEL),
    ] = "h200"
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="X", min=0, help="Of one device for an hour.", rich_help_panel=_PANEL),
    ] = None


def print_estimate(source: tuple[str, ManifestOptions], plan: PlanOptions, output_options: OutputOptions) -> None:
    """Prints what generating all lines takes on `plan.gpus` devices, and where each constant was measured.

    Raises:
        UsageError: an unknown device. ScriptInvalid: with all diagnostics of all rows.
    """
    from csm_cli.script import Manifest

    if plan.gpu not in SPEEDS:
        raise UsageError(f"--gpu takes {', '.join(SPEEDS)}, not {plan.gpu!r}; these were measured")
    name, rows = source
    lines = chars = 0
    for conversation in Manifest(name, None, rows.columns, rows.read_header()).checked():
        lines += 1
        chars += sum(len(turn.text) for turn in conversation.turns if not turn.recording)
    estimate = BatchEstimate(lines, chars, plan.gpus, SPEEDS[plan.gpu], plan.price)
    record = estimate.record()
    if output_options.json:
        emit_json(record)
        return
    emit(f"{lines} lines, about {format_duration(estimate.audio_seconds)} of audio")
    cost = f", cost {record['cost']:,.2f}" if plan.price is not None else ""
    emit(f"{plan.gpus} x {plan.gpu}: {format_duration(3600 * estimate.hours)}{cost}")
    emit(f"storage: {_size(record['wav_bytes'])} as WAV, {_size(record['flac_bytes'])} as FLAC")
    ledger = f"{_size(record['ledger_bytes'])}, {record['lines_per_second']:g} lines per second"
    limit = "; it is the limit, use several batches (--shard)" if estimate.parent_load >= 0.99 else ""
    emit(f"results.jsonl: {ledger}; the parent is busy {estimate.parent_load:.0%} of the time{limit}")
    for what, where in estimate.sources().items():
        emit(f"  {what}: {where}")


def _size(count: float) -> str:
    """Bytes as people read them, such as 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def print_plan(
    source: tuple[str, ManifestOptions],
    shard: str | None,
    speech: SynthesisFlags,
    output: OutputFile,
    output_options: OutputOptions,
    audio: AudioOptions,
) -> None:
    """Prints how many items of each shard are done, left and failed.

    shard: as --shard; only the number of shards counts.

    Raises:
        ScriptInvalid, InputError, UsageError: as `run_batch`.
    """
    from csm_cli.script import Manifest

    if not output.output or output.output == "-":
        raise UsageError("--plan looks at what was written; name it as in -o 'out/{shard}/{id}.wav'")
    if is_shard_pattern(output.output):
        patterns = [ShardPattern(output.output, 1).items]
    else:
        count = Shard.read_count(shard, os.environ) if shard else 1
        patterns = [OutputPattern(output.output, index) for index in range(1, count + 1)]
    plan = BatchPlan(patterns)
    job, encoding = make_job((), speech, output_options), audio.for_output(output)
    name, rows = source
    manifest = Manifest(name, None, rows.columns, rows.read_header())
    for _ in check_outputs(
        map(audio.of_item, plan.items(manifest.checked())), [manifest.path] if manifest.path else (), encoding
    ):
        pass
    synthesis = SynthesisSetup(find_checkpoint(job), job.flags, job.retry_policy, speech.verify)
    delivery = audio.delivery(output)
    items = plan.items(with_settings(manifest, speech))
    plan.count(audio.of_item(with_fingerprint(item, synthesis, delivery)) for item in items)
    unfinished = format_ranges(each.index for each in plan.shards if each.counts.selected).replace(" ", "")
    if output_options.json:
        emit_json({"shards": [each.record() for each in plan.shards], "unfinished": unfinished or None})
        return
    for each in plan.shards:
        emit(_line(each))
    if len(plan.shards) > 1:
        emit(f"unfinished shards: {unfinished}; sbatch --array={unfinished}" if unfinished else "all shards are done")


def _line(shard: ShardPlan) -> str:
    counts = shard.counts
    done = f"shard {shard.index}: {counts.done} of {counts.total} done"
    failed = f", {shard.failed} of them failed before" if shard.failed else ""
    return f"{done}, {counts.selected} left{failed} ({counts.chars} characters)" if counts.selected else done
