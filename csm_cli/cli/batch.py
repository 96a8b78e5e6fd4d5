"""csm batch: a manifest, many lines at a time, one file each."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.console import emit_json, emit_path, note, warn
from csm_cli.cli.options import Output, Speech, Telling
from csm_cli.cli.progress import Meter, drawn
from csm_cli.cli.speaking import Job, Spoken, file_name, open_synthesizer, plan, speak
from csm_cli.cli.summary import cut, record, told, total
from csm_cli.errors import BatchPartlyFailed, CsmError, GenerationFailed, InputError, UsageError
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.synth import Synthesizer

_FIELDS = ("id", "index", "speaker")


def batch(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="JSONL, one item a line; - is standard input.")],
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, max=1024, help="Items decoded together.")
    ] = 8,
    *,
    speech: Speech,
    output: Output,
    telling: Telling,
) -> None:
    """Speak the lines of a manifest, each to a file such as -o 'out/{id}.wav'.

    The output's fields are {id}, {index} (from 1) and {speaker}.
    """
    from csm_cli.script import read_manifest

    pattern = _checked_pattern(output)
    items = read_manifest(manifest)
    paths = _paths(pattern, items, not output.no_clobber)
    job = plan(items, speech, telling, min(batch_size, len(items)))
    _Run(job, dict(zip((id(item) for item in job.conversations), paths, strict=True)), not output.no_clobber).go()


class _Run:
    """One run over a manifest; `paths` by the id() of the conversation."""

    def __init__(self, job: Job, paths: dict[int, Path], clobber: bool) -> None:
        self._job, self._paths, self._clobber = job, paths, clobber
        self._written = 0
        self._failed = 0

    def go(self) -> None:
        job = self._job
        synth = open_synthesizer(job)
        meter = Meter(job.conversations, synth.codec.frame_rate)
        try:
            with drawn(meter, job.telling.quiet):
                self._speak(synth, meter)
        finally:
            if not job.telling.quiet:
                note(f"{self._written} of {len(job.conversations)} written; {total(meter, synth)}")
        self._raise_failures()

    def _speak(self, synth: Synthesizer, meter: Meter) -> None:
        from csm_cli.synth import Failure

        for event in speak(synth, self._job, meter):
            if isinstance(event, Spoken):
                self._write(event, synth)
            elif isinstance(event, Failure):
                self._fail(event.conversation, event.error)

    def _write(self, spoken: Spoken, synth: Synthesizer) -> None:
        from csm_cli.audio import write_audio

        path = self._paths[id(spoken.conversation)]
        try:
            write_audio(path, spoken.track.audio, self._clobber)
        except CsmError as error:
            self._fail(spoken.conversation, error)
            return
        self._written += 1
        if not self._job.telling.quiet:
            for utterance in spoken.utterances:
                note(f"{spoken.conversation.id}: {told(utterance)}")
        for warning in cut(spoken):
            warn(f"{spoken.conversation.id}: {warning}")
        if self._job.telling.json:
            emit_json(record(spoken, str(path), synth))
        else:
            emit_path(path)

    def _fail(self, conversation: Conversation, error: CsmError) -> None:
        self._failed += 1
        warn(f"{conversation.id}: {error}")
        if self._job.telling.json:
            emit_json({"id": conversation.id, "status": "failed", "error": str(error)})

    def _raise_failures(self) -> None:
        if self._failed:
            kind = BatchPartlyFailed if self._written else GenerationFailed
            raise kind(f"{self._failed} of {len(self._job.conversations)} items failed; the lines above say why")


def _checked_pattern(output: Output) -> str:
    """The output pattern.

    Raises:
        UsageError: none, a pipe, or fields there are not.
    """
    pattern = output.name
    if output.path is None:
        raise UsageError("batch writes files; name them as in -o 'out/{id}.wav'")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None]
        if unknown := [field for field in fields if field not in _FIELDS]:
            raise UsageError(f"-o {pattern!r}: no field {{{unknown[0]}}}; there are {{id}}, {{index}} and {{speaker}}")
        pattern.format(id="a", index=1, speaker="a")
    except (ValueError, LookupError) as error:
        raise UsageError(f"-o {pattern!r}: {error}") from error
    return pattern


def _paths(pattern: str, items: Sequence[Conversation], clobber: bool) -> list[Path]:
    """Each item's file.

    Raises:
        InputError: two items share a file.
        OutputRefused: a file that cannot be written.
    """
    from csm_cli.audio import check_output

    owners: dict[str, Conversation] = {}
    paths = []
    for index, item in enumerate(items, 1):
        names = {"id": item.id, "index": index, "speaker": file_name(item.turns[0])}
        path = Path(pattern.format(**names)).expanduser()
        owner = owners.setdefault(os.path.normcase(path), item)
        if owner is not item:
            raise InputError(f'"{owner.id}" and "{item.id}" would both be written to {path}; put {{id}} into -o')
        check_output(path, clobber)
        paths.append(path)
    return paths
