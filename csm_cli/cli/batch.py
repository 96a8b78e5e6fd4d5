"""csm batch: a manifest, many lines at a time, one file each; a run that was cut off goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.batch import Choice, Item, Ledger, Marker, Pattern, Plan, Shard, Voice, choose, sweep
from csm_cli.cli.console import emit_json, emit_path, note, warn
from csm_cli.cli.options import Output, Speech, Telling
from csm_cli.cli.progress import Meter, drawn
from csm_cli.cli.speaking import Job, Spoken, find_checkpoint, open_synthesizer, plan, speak
from csm_cli.cli.summary import cut, record, tags, told, total
from csm_cli.errors import BatchPartlyFailed, CsmError, GenerationFailed, OutputFailed, UsageError

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.synth import Synthesizer


def _part(*flags: str, text: str, **more: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Which lines", **more)


@dataclass(frozen=True)
class Scope:
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
    def choice(self) -> Choice:
        return Choice(self.force, self.retry_failed, self.limit)

    @property
    def patience(self) -> float:
        """How many failures end the run."""
        return 1 if self.fail_fast else self.max_failures or float("inf")

    def part(self) -> Shard:
        return Shard.read(self.shard, os.environ) if self.shard else Shard()


def batch(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="JSONL, CSV or text lines; - is standard input.")],
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, max=1024, help="Items decoded together.")
    ] = 8,
    *,
    scope: Scope,
    speech: Speech,
    output: Output,
    telling: Telling,
) -> None:
    """Speak the lines of a manifest, each to a file such as -o 'out/{id}.wav'.

    The output's fields are {id}, {index} (from 1), {speaker} and {shard}. What is done is recorded in results.jsonl
    beside the files; the same command again speaks the rest.
    """
    from csm_cli.script import read_manifest

    shard = scope.part()
    pattern = _pattern(output, shard)
    conversations = read_manifest(manifest)
    job = plan(conversations, speech, telling, batch_size)
    items = shard.of(pattern.items(job.conversations))
    checkpoint = find_checkpoint(job)
    marker = Marker(Voice(checkpoint, job.flags, job.care, speech.verify))
    marked = [marker.mark(item) for item in items]
    with Ledger(pattern.folder) as ledger:
        chosen = choose(marked, ledger.entries, scope.choice)
        if output.no_clobber:
            _refuse_existing(chosen.items)
        sweep(chosen.items)
        _Run(job, chosen, ledger, scope.patience).go(checkpoint)


class _Run:
    """One run over what is to be spoken; it gives up after `patience` failures."""

    def __init__(self, job: Job, chosen: Plan, ledger: Ledger, patience: float) -> None:
        talks = [item.conversation for item in chosen.items]
        self._job = replace(job, conversations=talks, slots=max(1, min(job.slots, len(talks))))
        self._items = {id(item.conversation): item for item in chosen.items}
        self._plan, self._ledger, self._patience = chosen, ledger, patience
        self._written = 0
        self._failed = 0

    def go(self, checkpoint: Checkpoint) -> None:
        if self._plan.items:
            self._work(checkpoint)
        elif not self._job.telling.quiet:
            note(f"nothing to speak{self._beside()}")
        self._raise_failures()

    def _work(self, checkpoint: Checkpoint) -> None:
        synth = open_synthesizer(self._job, checkpoint)
        meter = Meter(self._job.conversations, synth.codec.frame_rate)
        try:
            with drawn(meter, self._job.telling.quiet):
                self._speak(synth, meter)
        finally:
            if not self._job.telling.quiet:
                note(f"{self._written} of {len(self._items)} written{self._beside()}; {total(meter, synth)}")

    def _beside(self) -> str:
        """What this run leaves alone."""
        done = f"; {self._plan.done} done before" if self._plan.done else ""
        return done + (f"; {self._plan.left} left for later" if self._plan.left else "")

    def _speak(self, synth: Synthesizer, meter: Meter) -> None:
        from csm_cli.synth import Failure

        for event in speak(synth, self._job, meter):
            if isinstance(event, Spoken):
                self._write(event, synth)
            elif isinstance(event, Failure):
                self._fail(self._items[id(event.conversation)], event.error)
            if self._failed >= self._patience:
                return

    def _write(self, spoken: Spoken, synth: Synthesizer) -> None:
        from csm_cli.audio import write_audio

        item, telling = self._items[id(spoken.conversation)], self._job.telling
        try:
            said = tags(spoken.utterances, synth.checkpoint, spoken.conversation.title)
            write_audio(item.path, spoken.track.audio, tags=said)
        except OutputFailed:
            raise  # a full disk would fail all the others too
        except CsmError as error:
            self._fail(item, error)
            return
        result = record(spoken, str(item.path), synth)
        self._ledger.append(result | {"file": item.file, "fingerprint": item.fingerprint})
        self._written += 1
        if not telling.quiet:
            for utterance in spoken.utterances:
                note(f"{item.id}: {told(utterance)}")
        for warning in cut(spoken):
            warn(f"{item.id}: {warning}")
        if telling.json:
            emit_json(result)
        else:
            emit_path(item.path)

    def _fail(self, item: Item, error: CsmError) -> None:
        result = {"id": item.id, "status": "failed", "output": None, "error": str(error)}
        self._ledger.append(result | {"fingerprint": item.fingerprint})
        self._failed += 1
        warn(f"{item.id}: {error}")
        if self._job.telling.json:
            emit_json(result)

    def _raise_failures(self) -> None:
        if self._failed:
            kind = BatchPartlyFailed if self._written or self._plan.done else GenerationFailed
            rest = len(self._items) - self._written - self._failed
            stopped = f", {rest} were not tried" if rest else ""
            raise kind(f"{self._failed} of {len(self._items)} items failed{stopped}; the lines above say why")


def _pattern(output: Output, shard: Shard) -> Pattern:
    """Raises UsageError where the output is none, a pipe, or has fields there are not."""
    name = output.name
    if output.path is None:
        raise UsageError("batch writes files; name them as in -o 'out/{id}.wav'")
    return Pattern(name, shard.index)


def _refuse_existing(items: Sequence[Item]) -> None:
    from csm_cli.audio import check_output

    for item in items:
        check_output(item.path, clobber=False)
