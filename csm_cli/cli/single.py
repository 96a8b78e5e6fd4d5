"""One conversation to one file: the work of `say` and `converse`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.cli.console import emit_bytes, emit_json, emit_path, note, refuse_terminal, warn
from csm_cli.cli.live import Live, Stream, check_stream, opened
from csm_cli.cli.options import Output, Telling
from csm_cli.cli.progress import Meter, drawn
from csm_cli.cli.speaking import Job, Spoken, open_synthesizer, speak
from csm_cli.cli.summary import cut, record, told, total
from csm_cli.errors import CsmError, UsageError

if TYPE_CHECKING:
    from csm_cli.synth import Synthesizer


def check_outputs(output: Output, telling: Telling, more: Sequence[Path] = (), live: Live | None = None) -> Live:
    """Refuses what could not be written or played, before a model is loaded; returns what `live` comes to.

    Raises:
        UsageError: no output, two things on standard output, or a file that cannot be written.
    """
    from csm_cli.audio import check_output

    settled = (live or Live()).settled(output)
    if output.output == "-":
        if telling.json:
            raise UsageError("-o - and --json both want standard output; name a file for one")
        refuse_terminal()
    if output.file:
        check_output(output.file, not output.no_clobber, settled.format)
    if output.file in more:
        raise UsageError(f"{output.file} would be a turn's file too; name another -o or --turns-dir")
    for path in more:
        check_output(path, not output.no_clobber)
    return settled


def speak_one(job: Job, output: Output, turn_files: Sequence[Path] = (), live: Live | None = None) -> None:
    """Speaks a job's only conversation; nothing is written where a turn fails.

    turn_files: where each turn goes by itself; empty for nowhere. live: as `check_outputs` returned it.
    """
    telling, live = job.telling, live or Live()
    job = replace(job, streamed=live.stream)
    if live.stream:
        check_stream(job.conversations[0])
    synth = open_synthesizer(job)
    meter = Meter(job.conversations, synth.codec.frame_rate)
    with drawn(meter, telling.quiet):
        spoken = _streamed(synth, job, meter, live, output) if live.stream else _take(synth, job, meter)
    _write(spoken, output, live, turn_files)
    _tell(spoken, output, telling, synth)
    for warning in cut(spoken):
        warn(warning)
    if not telling.quiet:
        where = f"written to {output.file or 'standard output'}" if output.output else "played"
        note(f"{spoken.track.audio.duration:.1f} s {where}; {total(meter, synth)}")


def _streamed(synth: Synthesizer, job: Job, meter: Meter, live: Live, output: Output) -> Spoken:
    if not job.telling.quiet:
        rate = synth.codec.rate
        note(f"streaming at {rate} Hz: takes are as the model makes them, without retries or trimming")
    with opened(live, output, synth.codec.rate) as writes:
        stream = Stream(job.conversations[0], synth.codec.rate, writes)
        spoken = _take(synth, job, meter, stream)
        stream.end()
    if not job.telling.quiet:
        note(f"first sound after {stream.first or 0:.2f} s")
    return spoken


def _take(synth: Synthesizer, job: Job, meter: Meter, stream: Stream | None = None) -> Spoken:
    from csm_cli.synth import Failure, Sound

    for event in speak(synth, job, meter):
        if isinstance(event, Spoken):
            return event
        if isinstance(event, Sound):
            if stream:
                stream.add(event)
            continue
        if isinstance(event, Failure):
            raise event.error
        if not job.telling.quiet:
            note(told(event))
    raise CsmError("the model stopped before the last turn; run again with --debug and report it")


def _write(spoken: Spoken, output: Output, live: Live, turn_files: Sequence[Path]) -> None:
    from csm_cli.audio import encode, write_audio

    audio = spoken.track.audio
    if output.file:
        write_audio(output.file, audio, not output.no_clobber, live.format)
    elif output.output and not live.stream:
        emit_bytes(encode(audio, live.format or "wav"))
    for path, utterance in zip(turn_files, spoken.utterances, strict=False):
        write_audio(path, utterance.audio, not output.no_clobber)
    if live.play and not live.stream:
        from csm_cli.player import open_player

        with open_player(audio.rate) as player:
            player.write(audio.samples)


def _tell(spoken: Spoken, output: Output, telling: Telling, synth: Synthesizer) -> None:
    if telling.json:
        emit_json(record(spoken, str(output.file) if output.file else None, synth))
    elif output.file:
        emit_path(output.file)
