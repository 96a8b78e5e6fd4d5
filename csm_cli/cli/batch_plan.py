"""`csm batch --plan`: what remains, by shard, and the Slurm array that would generate it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from csm_cli.batch.items import OutputPattern, Shard, check_outputs, with_fingerprint
from csm_cli.batch.plan import BatchPlan, ShardPlan
from csm_cli.batch.shards import ShardPattern, is_shard_pattern
from csm_cli.cli.audio_options import AudioOptions
from csm_cli.cli.console import emit, emit_json
from csm_cli.cli.options import ManifestOptions, OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.synthesis import find_checkpoint, make_job, with_settings
from csm_cli.errors import UsageError
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.report import format_ranges

_PANEL = "Plan"


@dataclass(frozen=True)
class PlanOptions:
    """What is printed instead of generating."""

    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what remains, by shard; generate nothing.", rich_help_panel=_PANEL),
    ] = False


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

    if not output.output or output.path is None:
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
    for _ in check_outputs(plan.items(manifest.checked()), [manifest.path] if manifest.path else (), encoding):
        pass
    synthesis = SynthesisSetup(find_checkpoint(job), job.flags, job.retry_policy, speech.verify)
    plan.count(with_fingerprint(item, synthesis, encoding) for item in plan.items(with_settings(manifest, speech)))
    unfinished = format_ranges(each.index for each in plan.shards if each.counts.selected)
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
