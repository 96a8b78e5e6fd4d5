"""One conversation to its files: the work of `say` and `converse`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli import __version__
from csm_cli.cli.console import emit_bytes, emit_json, emit_path, log_line, refuse_terminal, warn
from csm_cli.cli.live_audio import LiveStream, PlaybackOptions, check_stream, open_stream
from csm_cli.cli.options import OutputFile, OutputOptions
from csm_cli.cli.output_files import OutputFiles
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.cli.report import dialogue_report
from csm_cli.cli.summary import (
    contention_hint,
    cut_warnings,
    describe_utterance,
    format_ranges,
    record,
    summarize,
    tags,
    window_summary,
)
from csm_cli.cli.synthesis import FinishedConversation, SynthesisJob, find_checkpoint, open_synthesizer, speak
from csm_cli.errors import CsmError, GenerationFailed, UsageError
from csm_cli.generation.events import AudioChunk, ConversationFailed, Utterance
from csm_cli.storage.files import write_together

if TYPE_CHECKING:
    from csm_cli.generation.incremental import IncrementalRun, RedoRequest
    from csm_cli.generation.synthesizer import Synthesizer


def check_outputs(
    output: OutputFile,
    live: PlaybackOptions,
    output_options: OutputOptions,
    files: OutputFiles,
    read: Iterable[Path] = (),
) -> PlaybackOptions:
    """Refuses what could not be written or played, before a model is loaded; returns what `live` comes to.

    Raises:
        UsageError: two things on standard output, a stream to nowhere, or a file that cannot be written or is in
            `read`.
        SoundDeviceMissing: nothing to play on.
    """
    settled = live.settled(output)
    if output.output == "-":
        if output_options.json:
            raise UsageError("-o - and --json both want standard output; name a file for one")
        refuse_terminal()
    files.check(not output.no_clobber, read)
    return settled


@dataclass(frozen=True)
class RunRequest:
    """What to speak, and where to.

    live: as `check_outputs` returned it. wish: which turns are spoken again where others are kept; None keeps none.
    report: a page to look at.
    """

    job: SynthesisJob
    files: OutputFiles
    output: OutputFile
    live: PlaybackOptions
    wish: RedoRequest | None = None
    report: Path | None = None

    @property
    def keeps(self) -> Path | None:
        """The track beside which turns are kept."""
        return self.files.track if self.wish else None


def run_conversation(order: RunRequest) -> None:
    """Speaks a job's only conversation; nothing is written where a turn fails, but what is kept for the next run.

    Raises UsageError where another run keeps turns of the same track.
    """
    order = _streamable(order) if order.live.stream else order
    if order.keeps is None:
        _speak(order)
        return
    from csm_cli.generation.turn_cache import lock_track

    with lock_track(order.keeps):
        _speak(order)


def _speak(order: RunRequest) -> None:
    job, files, quiet = order.job, order.files, order.job.output_options.quiet
    checkpoint = find_checkpoint(job)
    replay = _replay(order, checkpoint)
    if replay:
        job = replace(job, conversations=[replay.conversation], flags=replay.flags)
        if not quiet and (hint := _hint(replay)):
            log_line(hint)
    synth = open_synthesizer(job, checkpoint)
    meter = ProgressMeter(job.conversations, synth.codec.frame_rate)
    with show_progress(meter, quiet), _kept_at_least(replay, quiet), _streaming(order, synth) as stream:
        spoken = _take(speak(synth, job, meter), stream, replay, quiet)
    result = _result(spoken, order, synth)
    for index, kept in replay.kept.items() if replay else ():
        result["turns"][index]["takes"] = list(kept.takes)
    _write(spoken, order, synth, result)
    if order.report:
        dialogue_report(order.report, result, spoken.track.audio, spoken.conversation.title or spoken.conversation.id)
    if replay:
        replay.settle()
    _tell(result, files, job.output_options)
    _play(spoken, order.live)
    for warning in cut_warnings(spoken):
        warn(warning)
    if not quiet:
        more = len(list(files)) - (1 if files.track else 0)
        beside = f" and {more} more file{'s' if more > 1 else ''}" if more else ""
        where = f"written to {files.track or 'standard output'}" if order.output.output else "played"
        log_line(
            f"{_length(spoken, result)} {where}{beside}; {summarize(meter, synth)}; {window_summary(result['window'])}"
        )
        if hint := contention_hint(job, synth):
            log_line(hint)


def _streamable(order: RunRequest) -> RunRequest:
    """The order with takes as a stream can have them; raises UsageError where it can have none."""
    check_stream(order.job.conversations[0])
    return replace(order, job=replace(order.job, retry_policy=order.job.speech.streaming_policy))


def _replay(order: RunRequest, checkpoint: Any) -> IncrementalRun | None:
    if order.wish is None or order.keeps is None:
        return None
    from csm_cli.generation.fingerprint import SynthesisSetup
    from csm_cli.generation.incremental import IncrementalRun
    from csm_cli.generation.turn_cache import TurnCache

    job = order.job
    voice = SynthesisSetup(checkpoint, job.flags, job.retry_policy, job.speech.verify)
    return IncrementalRun(TurnCache.beside(order.keeps), job.conversations[0], voice, order.wish)


def _hint(replay: IncrementalRun) -> str:
    """What somebody may not expect of turns that are kept."""
    if replay.kept and len(replay.kept) == sum(not turn.recording for turn in replay.talk.turns) and not replay.stale:
        return "all turns are kept from runs before; --fresh speaks them again"
    if not replay.stale:
        return ""
    numbers = format_ranges([index + 1 for index in replay.stale])
    what = f"turns {numbers} are" if len(replay.stale) > 1 else f"turn {numbers} is"
    return f"{what} kept, though what is said before has changed; --cascade speaks all that follows a change again"


@contextmanager
def _kept_at_least(replay: IncrementalRun | None, quiet: bool) -> Iterator[None]:
    """Tells what is kept where a run ends before its last turn."""
    try:
        yield
    except (CsmError, KeyboardInterrupt) as end:
        if replay and (done := replay.done) and not quiet:
            kept = f"{done} turn{'s are' if done > 1 else ' is'} kept"
            bad = isinstance(end, GenerationFailed)
            again = f"--redo {done + 1} gives the next one new seeds" if bad else "it goes on there"
            if replay.left:
                log_line(f"{kept}; go on with --redo {format_ranges(replay.left).replace(' ', '')}")
            else:
                log_line(f"{kept} for when the same command runs again; {again}")
        raise


@contextmanager
def _streaming(order: RunRequest, synth: Synthesizer) -> Iterator[LiveStream | None]:
    """Where sound goes as it is decoded, if it does."""
    if not order.live.stream:
        yield None
        return
    rate, quiet = synth.codec.rate, order.job.output_options.quiet
    if not quiet:
        log_line(
            f"streaming at {rate} Hz: takes are as the model makes them, without retries or trimming, and in one part"
        )
    with open_stream(order.live, order.output, rate) as writes:
        stream = LiveStream(order.job.conversations[0], rate, writes)
        yield stream
        stream.end()
    if not quiet:
        log_line(f"first sound after {stream.first or 0:.2f} s")


def _take(
    events: Iterable[AudioChunk | Utterance | FinishedConversation | ConversationFailed],
    stream: LiveStream | None,
    replay: IncrementalRun | None,
    quiet: bool,
) -> FinishedConversation:
    heard: list[Utterance] = []
    hear: Callable[[Utterance], Utterance] = replay.hear if replay else lambda utterance: utterance
    for event in events:
        if isinstance(event, AudioChunk):
            if stream:
                stream.add(event)
            continue
        if isinstance(event, FinishedConversation):
            return replace(event, conversation=heard[0].conversation, utterances=tuple(heard))
        if isinstance(event, ConversationFailed):
            raise event.error
        heard.append(hear(event))
        if not quiet:
            log_line(describe_utterance(heard[-1]))
    raise CsmError("the model stopped before the last turn; run again with --debug and report it")


def _result(spoken: FinishedConversation, order: RunRequest, synth: Synthesizer) -> dict[str, Any]:
    """What --json and the sidecar say."""
    track, target = spoken.track.audio, spoken.conversation.loudness
    output = str(order.files.track) if order.files.track else None
    result = record(spoken, output, synth) | order.files.record()
    if target is not None:
        from csm_cli.audio.loudness import loudness, true_peak

        measured = round(loudness(track.samples, track.rate), 2), round(true_peak(track.samples), 2)
        result["loudness"] = {"target_lufs": target, "lufs": measured[0], "true_peak_dbtp": measured[1]}
    return result


def _write(spoken: FinishedConversation, order: RunRequest, synth: Synthesizer, result: dict[str, Any]) -> None:
    """All files at once, or none."""
    from csm_cli.audio.io import encode

    order.files.check(not order.output.no_clobber)  # again: it may have been long
    old = order.files.left_over()
    sidecar = {"csm": __version__, "synthetic": True, **_asked(order), **result}
    write_together(order.files.contents(spoken, synth.checkpoint, sidecar))
    if old:
        warn(f"{', '.join(map(str, old))}: of an earlier {order.files.track}, not of this one")
    if order.output.output == "-" and not order.live.stream:
        said = tags(spoken.utterances, synth.checkpoint, spoken.conversation.title)
        emit_bytes(encode(spoken.track.audio, order.live.format or "wav", said))


def _play(spoken: FinishedConversation, live: PlaybackOptions) -> None:
    if live.play and not live.stream:
        from csm_cli.audio.playback import open_player

        with open_player(spoken.track.audio.rate) as player:
            player.write(spoken.track.audio.samples)


def _asked(order: RunRequest) -> dict[str, Any]:
    """What the run was asked for, for the sidecar."""
    from dataclasses import asdict

    from csm_cli.cli.dry_run import records

    job, talk = order.job, order.job.conversations[0]
    speech = job.speech
    return {
        "title": talk.title or None,
        "script": {"context": records(talk.context), "turns": records(talk.turns), "tail": talk.tail},
        "options": {"flags": asdict(job.flags), "script": asdict(talk.defaults)},
        "retry_policy": asdict(job.retry_policy),
        "verified": speech.verify,
        "lexicon": dict(talk.lexicon),
        "dtype": speech.dtype,
        "quantize": speech.quantize,
    }


def _length(spoken: FinishedConversation, result: dict[str, Any]) -> str:
    seconds = f"{spoken.track.audio.duration:.1f} s"
    level = result.get("loudness")
    return f"{seconds} ({level['lufs']:.1f} LUFS, true peak {level['true_peak_dbtp']:.1f} dBTP)" if level else seconds


def _tell(result: dict[str, Any], files: OutputFiles, output_options: OutputOptions) -> None:
    if output_options.json:
        emit_json(result)
    elif files.track:
        emit_path(files.track)
