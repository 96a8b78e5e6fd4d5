"""The run of a single conversation, as `say` and `converse` do it: its audio, its files, its turn cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.cli.console import emit_bytes, emit_json, emit_path, log_line, refuse_terminal, warn
from csm_cli.cli.live_audio import LiveStream, PlaybackOptions, check_stream, open_stream
from csm_cli.cli.options import OutputFile, OutputOptions
from csm_cli.cli.output_files import OutputFiles, sidecar_record
from csm_cli.cli.progress import ProgressMeter, show_progress
from csm_cli.cli.summary import (
    contention_hint,
    context_summary,
    conversation_record,
    describe_utterance,
    summarize,
    turn_warnings,
)
from csm_cli.cli.synthesis import (
    FinishedConversation,
    SynthesisJob,
    collect_turns,
    find_checkpoint,
    open_synthesizer,
    speak,
    with_word_times,
)
from csm_cli.errors import CsmError, GenerationFailed, UsageError
from csm_cli.generation.events import (
    AudioChunk,
    ConversationFailed,
    Event,
    ModelIdentity,
    Utterance,
    audio_tags,
)
from csm_cli.report import format_count, format_ranges
from csm_cli.storage.files import write_together
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.track_record import TrackRecord
    from csm_cli.generation.incremental import IncrementalRun, RedoRequest
    from csm_cli.generation.turn_cache import CachedTurn
    from csm_cli.report.page import ReportRequest


@dataclass(frozen=True)
class RunRequest:
    """A job of one conversation, and where its audio goes.

    live: as returned by `check_outputs`. redo: which cached turns are generated again; None disables the turn cache.
    report: the HTML report.
    """

    job: SynthesisJob
    files: OutputFiles
    output: OutputFile
    live: PlaybackOptions
    redo: RedoRequest | None = None
    report: ReportRequest | None = None


def check_outputs(
    output: OutputFile,
    live: PlaybackOptions,
    output_options: OutputOptions,
    files: OutputFiles,
    inputs: Iterable[Path] = (),
) -> PlaybackOptions:
    """Refuses outputs that cannot be written or played, before a model is loaded; returns the resolved `live`.

    Raises:
        UsageError: audio and JSON both on standard output, a stream without a listener, or a file that cannot be
            written or is one of `inputs`.
        SoundDeviceMissing: no device to play on.
    """
    resolved = live.resolve(output, files.encoding)
    if output.output == "-":
        if output_options.json:
            raise UsageError("-o - and --json both write to standard output; name a file for one of them")
        refuse_terminal()
    files.check(not output.no_clobber, inputs)
    return resolved


def run_conversation(request: RunRequest) -> None:
    """Synthesizes a job's only conversation and writes all its files, or none; finished turns stay in the cache.

    Raises:
        UsageError: another run uses the turn cache of the same track, or the conversation cannot be streamed.
        GenerationFailed: a turn without a good take.
    """
    job = request.job
    if request.live.stream:
        check_stream(job.conversations[0])
        request = replace(request, job=replace(job, retry_policy=job.speech.streaming_policy))
    track = request.files.track
    if request.redo is None or track is None:
        _run(request, None, find_checkpoint(job))
        return
    from csm_cli.generation.turn_cache import lock_track

    with lock_track(track):
        checkpoint = find_checkpoint(job)
        _run(request, _incremental_run(request, track, request.redo, checkpoint), checkpoint)


def _incremental_run(request: RunRequest, track: Path, redo: RedoRequest, checkpoint: Checkpoint) -> IncrementalRun:
    from csm_cli.generation.fingerprint import SynthesisSetup
    from csm_cli.generation.incremental import IncrementalRun
    from csm_cli.generation.turn_cache import TurnCache

    job = request.job
    sizes = checkpoint.config.codebooks, checkpoint.config.vocab
    cache = TurnCache.open(track, *sizes)
    if redo.source and not redo.fresh:
        cache.copy_from(TurnCache.open(redo.source, *sizes))
    setup = SynthesisSetup(checkpoint, job.flags, job.retry_policy, job.speech.verify)
    return IncrementalRun(cache, job.conversations[0], setup, redo)


def _run(request: RunRequest, run: IncrementalRun | None, checkpoint: Checkpoint) -> None:
    from csm_cli.models.mimi.config import codec_config

    job, files, quiet = request.job, request.files, request.job.output_options.quiet
    if run:
        job = replace(job, conversations=[run.conversation], flags=run.flags)
        if not quiet and (hint := _reuse_hint(run)):
            log_line(hint)
    (conversation,) = job.conversations
    needs_model = any(turn.recording is None for turn in conversation.turns)
    synth = open_synthesizer(job, checkpoint) if needs_model else None
    codec = codec_config(checkpoint.codec_config)
    meter = ProgressMeter([conversation], codec.frame_rate)
    if synth:
        events = speak(synth, job, meter)
    else:
        events = collect_turns(meter.watch(recorded_events(conversation, checkpoint, request.live.stream)))
    with show_progress(meter, quiet), _cache_hint(run, quiet), _open_live_stream(request, codec.rate) as stream:
        finished = _finish(events, stream, run, quiet)
    if files.word_times:
        finished = with_word_times(finished, job.speech.whisper)

    device, cached = str(synth.device) if synth else None, run.cached if run else {}
    result = finished_record(finished, files, checkpoint, cached, device)
    write_finished(finished, request, checkpoint, result)
    if run and files.track:
        run.finish()
        facts = {"device": device, "rtf": result["rtf"]}
        _track_record(request, run, checkpoint, facts).save(files.track)
    if job.output_options.json:
        emit_json(result)
    elif files.track:
        emit_path(files.track)
    if request.live.play and not request.live.stream:
        from csm_cli.audio.playback import open_player

        with open_player(finished.track.audio.rate) as player:
            player.write(finished.track.audio.samples)
    for warning in turn_warnings(finished):
        warn(warning)
    if not quiet:
        log_line("; ".join(summary_parts(request, result, meter)))
        if synth and (hint := contention_hint(job, synth)):
            log_line(hint)


def _reuse_hint(run: IncrementalRun) -> str:
    """What a user may not expect of reused turns."""
    if run.outdated:
        turns = f"turn{'s' if len(run.outdated) > 1 else ''} {format_ranges(run.outdated)}"
        return f"{turns} reused although earlier turns changed; --cascade generates all turns after a change again"
    if run.reused and len(run.reused) == sum(not turn.recording for turn in run.script.turns):
        return "all turns are reused from an earlier run; --fresh generates them again"
    return ""


@contextmanager
def _cache_hint(run: IncrementalRun | None, quiet: bool) -> Iterator[None]:
    """If a run ends before its last turn, says which turns are cached and how to continue."""
    try:
        yield
    except (CsmError, KeyboardInterrupt) as end:
        if run and run.finished_count and not quiet:
            cached = f"{format_count(run.finished_count, 'finished turn')} cached"
            if run.remaining_redo:
                log_line(f"{cached}; continue with --redo {format_ranges(run.remaining_redo).replace(' ', '')}")
            elif isinstance(end, GenerationFailed):
                log_line(f"{cached}; run again with --redo {run.finished_count + 1} to try new seeds for the next one")
            else:
                log_line(f"{cached}; run the same command again to continue")
        raise


@contextmanager
def _open_live_stream(request: RunRequest, rate: int) -> Iterator[LiveStream | None]:
    """The destination of audio chunks; None unless streaming."""
    if not request.live.stream:
        yield None
        return
    quiet = request.job.output_options.quiet
    if not quiet:
        log_line(f"streaming at {rate} Hz, without retries, trimming or splitting")
    with open_stream(request.live, request.output, rate) as sinks:
        stream = LiveStream(request.job.conversations[0], rate, sinks)
        yield stream
        stream.end()
    if not quiet:
        log_line(f"first audio after {stream.first or 0:.2f} s")


def _finish(
    events: Iterable[AudioChunk | Utterance | FinishedConversation | ConversationFailed],
    stream: LiveStream | None,
    run: IncrementalRun | None,
    quiet: bool,
) -> FinishedConversation:
    """Consumes the events of the only conversation: streams audio, caches turns, logs a line for each turn."""
    utterances: list[Utterance] = []
    for event in events:
        if isinstance(event, AudioChunk):
            if stream:
                stream.add(event)
        elif isinstance(event, FinishedConversation):
            return replace(event, conversation=utterances[0].conversation, utterances=tuple(utterances))
        elif isinstance(event, ConversationFailed):
            raise event.error
        else:
            utterances.append(run.record(event) if run else event)
            if not quiet:
                log_line(describe_utterance(utterances[-1]))
    raise CsmError("the model stopped before the last turn; run again with --debug and report it")


def recorded_events(conversation: Conversation, checkpoint: Checkpoint, stream: bool) -> Iterator[Event]:
    """The events of a conversation whose turns all have recordings, read from their files: no model, no codec.

    The codes of a recording that is not cached are unknown: [T, 0]. stream: yields audio chunks too.
    """
    import torch

    from csm_cli.audio.clip_checks import clip_warnings
    from csm_cli.audio.codes import read_codes
    from csm_cli.audio.io import read_audio
    from csm_cli.models.mimi.config import codec_config

    codec = codec_config(checkpoint.codec_config)
    for number, turn in enumerate(conversation.turns, 1):
        recording = turn.recording
        assert recording is not None
        audio = read_audio(recording.path, codec.rate, recording.start, recording.end)
        for warning in () if recording.codes_path else clip_warnings(audio).values():
            warn(f"{recording.path}: {warning}")
        if recording.codes_path:
            sizes = checkpoint.config.codebooks, checkpoint.config.vocab
            codes = torch.from_numpy(read_codes(recording.codes_path, *sizes))
        else:
            codes = torch.empty(-(-len(audio.samples) // codec.frame_samples), 0, dtype=torch.int64)
        if stream:
            yield AudioChunk(conversation, turn, audio.samples, number)
        yield Utterance(conversation, turn, codes, audio, "recorded", number=number)


def finished_record(
    finished: FinishedConversation,
    files: OutputFiles,
    model: ModelIdentity,
    cached: Mapping[int, CachedTurn],
    device: str | None = None,
) -> dict[str, Any]:
    """The JSON object of a conversation and its files. cached: its turns in the turn cache."""
    output = str(files.track) if files.track else None
    return conversation_record(finished, output, model, device, cached) | files.record()


def _track_record(
    request: RunRequest, run: IncrementalRun, checkpoint: Checkpoint, facts: Mapping[str, Any]
) -> TrackRecord:
    from csm_cli.cli.track_record import TrackModel, TrackRecord
    from csm_cli.models.mimi.config import codec_config

    config, codec = checkpoint.config, codec_config(checkpoint.codec_config)
    sizes = config.codebooks, config.vocab, codec.rate, codec.frame_samples
    model = TrackModel(checkpoint.name, checkpoint.revision, checkpoint.positions, checkpoint.soft_limit, *sizes)
    fingerprints = tuple(
        "" if turn.recording else each for turn, each in zip(run.script.turns, run.fingerprints, strict=True)
    )
    sidecar = sidecar_record(request.job, {})
    return TrackRecord(run.script, fingerprints, request.files, model, sidecar, facts, request.report)


def write_finished(
    finished: FinishedConversation, request: RunRequest, checkpoint: Checkpoint, result: dict[str, Any]
) -> None:
    """Writes the files and the report; the audio to standard output if that is the output."""
    from csm_cli.audio.io import encode

    files, title = request.files, finished.conversation.title
    files.check(not request.output.no_clobber)  # again: other programs may have written them meanwhile
    outdated = files.outdated()
    write_outputs(finished, files, checkpoint, sidecar_record(request.job, result), request.report)
    if outdated:
        warn(f"{', '.join(map(str, outdated))}: left from an earlier {files.track}, does not belong to this one")
    if request.output.output == "-" and not request.live.stream:
        tags = audio_tags(finished.utterances, checkpoint, title)
        emit_bytes(encode(finished.track.audio, files.encoding, tags))


def write_outputs(
    finished: FinishedConversation,
    files: OutputFiles,
    model: ModelIdentity,
    sidecar: Mapping[str, Any],
    report: ReportRequest | None,
) -> None:
    """Writes all files, or none, and then the report. sidecar: as `sidecar_record`.

    Raises:
        OutputRefused, OutputFailed: a file cannot be written.
    """
    write_together(files.contents(finished, model, sidecar))
    if report:
        from csm_cli.report.page import write_conversation_report

        title = finished.conversation.title or finished.conversation.id
        write_conversation_report(report, sidecar, finished.track.audio, title)


def summary_parts(request: RunRequest, result: dict[str, Any], meter: ProgressMeter) -> Iterator[str]:
    files, loudness = request.files, result["loudness"]
    length = f"{result['duration_s']:.1f} s"
    if loudness["target_lufs"] is not None and loudness["lufs"] is not None:
        length += f" ({loudness['lufs']:.1f} LUFS, true peak {loudness['true_peak_dbtp']:.1f} dBTP)"
    more = len(list(files)) - (1 if files.track else 0)
    beside = f" and {format_count(more, 'more file')}" if more else ""
    target = f"written to {files.track or 'standard output'}" if request.output.output else "played"
    yield f"{length} {target}{beside}"
    if request.report:
        yield f"report in {request.report.path}"
    yield summarize(meter, result["model"], result["device"])
    yield context_summary(result["context_window"])
