"""One conversation to one file: the work of `say` and `converse`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.cli.console import emit_bytes, emit_json, emit_path, note, refuse_terminal, warn
from csm_cli.cli.options import Output, Telling
from csm_cli.cli.progress import Meter, drawn
from csm_cli.cli.speaking import Job, Spoken, open_synthesizer, speak
from csm_cli.cli.summary import cut, record, told, total, window
from csm_cli.errors import CsmError, UsageError

if TYPE_CHECKING:
    from csm_cli.synth import Synthesizer


def check_outputs(output: Output, telling: Telling, more: Sequence[Path] = ()) -> None:
    """Refuses what could not be written, before a model is loaded.

    Raises:
        UsageError: no output, two things on standard output, or a file that cannot be written.
    """
    from csm_cli.audio import check_output

    if output.path is None:
        if telling.json:
            raise UsageError("-o - and --json both want standard output; name a file for one")
        refuse_terminal()
    paths = [path for path in (output.path, *more) if path]
    if len(set(paths)) < len(paths):
        raise UsageError(f"{output.path} would be a turn's file too; name another -o or --turns-dir")
    for path in paths:
        check_output(path, not output.no_clobber)


def speak_one(job: Job, output: Output, turn_files: Sequence[Path] = ()) -> None:
    """Speaks a job's only conversation; nothing is written where a turn fails.

    turn_files: where each turn goes by itself; empty for nowhere.
    """
    telling = job.telling
    synth = open_synthesizer(job)
    meter = Meter(job.conversations, synth.codec.frame_rate)
    with drawn(meter, telling.quiet):
        spoken = _take(synth, job, meter)
    _write(spoken, output, turn_files)
    _tell(spoken, output, telling, synth)
    for warning in cut(spoken):
        warn(warning)
    if not telling.quiet:
        name = output.path or "standard output"
        note(f"{spoken.track.audio.duration:.1f} s written to {name}; {total(meter, synth)}; {window(spoken, synth)}")


def _take(synth: Synthesizer, job: Job, meter: Meter) -> Spoken:
    from csm_cli.synth import Failure

    for event in speak(synth, job, meter):
        if isinstance(event, Spoken):
            return event
        if isinstance(event, Failure):
            raise event.error
        if not job.telling.quiet:
            note(told(event))
    raise CsmError("the model stopped before the last turn; run again with --debug and report it")


def _write(spoken: Spoken, output: Output, turn_files: Sequence[Path]) -> None:
    from csm_cli.audio import encode_wav, write_audio

    if output.path:
        write_audio(output.path, spoken.track.audio, not output.no_clobber)
    else:
        emit_bytes(encode_wav(spoken.track.audio))
    for path, utterance in zip(turn_files, spoken.utterances, strict=False):
        write_audio(path, utterance.audio, not output.no_clobber)


def _tell(spoken: Spoken, output: Output, telling: Telling, synth: Synthesizer) -> None:
    if telling.json:
        emit_json(record(spoken, str(output.path), synth))
    elif output.path:
        emit_path(output.path)
