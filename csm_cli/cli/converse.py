"""csm converse: a script as one track."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.audio_options import AudioOptions
from csm_cli.cli.console import configure_logging, emit, emit_json
from csm_cli.cli.conversation_run import RunRequest, check_outputs, run_conversation
from csm_cli.cli.live_audio import PlaybackOptions
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.output_files import (
    EmbedAudio,
    OutputFiles,
    ReportFile,
    report_request,
    stem_files,
    turn_files,
    turn_records,
)
from csm_cli.cli.summary import context_summary, spelled_record
from csm_cli.cli.synthesis import SynthesisJob, make_job
from csm_cli.errors import UsageError
from csm_cli.report import format_duration, format_ranges
from csm_cli.storage.paths import expand_path
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from csm_cli.generation.context_window import TurnEstimate
    from csm_cli.generation.incremental import RedoRequest


_REUSE = "Reusing turns"  # panel of the options that only --help-all shows


def _option(*flags: str, text: str, metavar: str | None = None, panel: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class ExtraOutputs:
    """Files written beside the track."""

    stems: Annotated[
        bool, _option("--stems", text="Write one track per speaker, as OUT.ana.wav; they add up to the whole.")
    ] = False
    turns_dir: Annotated[
        Path | None, _option("--turns-dir", metavar="DIR", text="Write each turn, as DIR/001-ana.wav.")
    ] = None
    sidecar: Annotated[
        bool, _option("--sidecar/--no-sidecar", text="Write metadata to OUT.wav.json.", panel="Extra outputs")
    ] = True

    def files(self, conversation: Conversation, track: Path | None) -> OutputFiles:
        """Raises UsageError if files belong beside a track that is not a file."""
        turns = turn_files(conversation, self.turns_dir) if self.turns_dir else ()
        if track is None:
            if self.stems:
                raise UsageError("--stems writes files beside the track; name it with -o out.wav")
            return OutputFiles(None, turns)
        return OutputFiles(
            track=track,
            turns=turns,
            stems=stem_files(conversation, track) if self.stems else {},
            sidecar=track.with_name(f"{track.name}.json") if self.sidecar else None,
        )


@dataclass(frozen=True)
class RedoOptions:
    """Which turns of earlier runs are reused."""

    redo: Annotated[
        str | None,
        _option(
            "--redo", metavar="TURNS", text="Generate these turns again: numbers, ids or speakers, as in 7,12-14,ana."
        ),
    ] = None
    cascade: Annotated[
        bool, _option("--cascade", text="Where a turn changed, generate all turns after it again too.", panel=_REUSE)
    ] = False
    fresh: Annotated[bool, _option("--fresh", text="Generate all turns again.", panel=_REUSE)] = False
    source: Annotated[
        str | None,
        _option(
            "--from", metavar="TRACK", panel=_REUSE, text="Reuse the turns of this track too, such as other/name.wav."
        ),
    ] = None
    keep_takes: Annotated[
        bool,
        _option("--keep-takes", text="Store all takes of --takes, --retries and --redo, for csm takes.", panel=_REUSE),
    ] = False

    def request(self, conversation: Conversation, track: Path | None) -> RedoRequest:
        """Raises UsageError if a turn of --redo is unknown or a recording, or there is no turn cache to use."""
        from csm_cli.generation.incremental import RedoRequest
        from csm_cli.generation.turn_cache import cache_folder, has_cached_turns

        flags = (("--redo", self.redo), ("--from", self.source), ("--keep-takes", self.keep_takes or None))
        if track is None and (flag := next((name for name, value in flags if value is not None), None)):
            raise UsageError(f"{flag} needs the turns cached beside the track; name it with -o out.wav")
        numbers = parse_turns(f"--redo {self.redo}", conversation.turns) if self.redo is not None else frozenset()
        source = None if self.source is None else expand_path(self.source)
        if source and not has_cached_turns(source):
            raise UsageError(f"--from {source}: it has no cached turns ({cache_folder(source)} is missing)")
        return RedoRequest(numbers, self.cascade, self.fresh, source, self.keep_takes)


def parse_turns(option: str, turns: Sequence[Turn]) -> frozenset[int]:
    """The turn numbers that `--redo 7,12-14,t2,ana` means: numbers, ranges, turn ids, and all turns of a speaker.

    Raises:
        UsageError: an unknown turn, id or speaker, with the most similar ones; a recorded turn.
    """
    numbers: set[int] = set()
    for part in map(str.strip, option.partition(" ")[2].split(",")):
        interval = re.fullmatch(r"(\d{1,6})\s*(?:-\s*(\d{1,6}))?", part)
        by_id = [number for number, turn in enumerate(turns, 1) if part and turn.id == part]
        by_speaker = [number for number, turn in enumerate(turns, 1) if part and turn.name == part]
        if interval:
            first, last = int(interval[1]), int(interval[2] or interval[1])
            if first > last:
                raise UsageError(f"{option}: {part} is not a range; write it as {last}-{first}")
            if not 1 <= first <= last <= len(turns):
                unknown = last if first >= 1 else first
                raise UsageError(f"{option}: there is no turn {unknown}; the script has {len(turns)} turns")
            selected = list(range(first, last + 1))
        elif by_id:
            selected = by_id
        elif by_speaker:  # a speaker's recorded turns are not meant
            selected = [number for number in by_speaker if not turns[number - 1].recording] or by_speaker
        else:
            names = list(dict.fromkeys([*(turn.id for turn in turns), *(turn.name for turn in turns)]))
            known = [name for name in names if name]
            similar = difflib.get_close_matches(part, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(similar)}?" if similar else f"known: {', '.join(known[:8]) or 'none'}"
            raise UsageError(f"{option}: {part!r} is not a turn number, turn id or speaker; {hint}")
        for number in selected:
            if turns[number - 1].recording:
                raise UsageError(f"{option}: turn {number} is a recording; leave it out")
        numbers.update(selected)
    return frozenset(numbers)


def converse(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="YAML, JSON or JSONL; - is standard input.")],
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print the turns and their estimated length; load no model.")
    ] = False,
    report: ReportFile = None,
    embed: EmbedAudio = False,
    *,
    extra_outputs: ExtraOutputs,
    redo_options: RedoOptions,
    speech: SynthesisFlags,
    output: OutputFile,
    audio: AudioOptions,
    live: PlaybackOptions,
    output_options: OutputOptions,
) -> None:
    """Synthesize a dialogue as one track.

    Finished turns are cached beside the track in .OUT.csm.
    The same command again generates only the turns that changed.
    After -o OUT.wav, -o OUT.flac reuses all of them.

    Examples:
      csm converse episode.yaml -o episode.wav
      csm converse episode.yaml -o episode.wav --redo 7,12-14
    """
    from csm_cli.script import read_script

    conversation = audio.adjusted(read_script(script))
    job = make_job([conversation], speech, output_options, word_times=audio.word_times)
    if not output.output and dry_run:
        print_dry_run(job)
        return
    page = report_request(report, embed)
    files = extra_outputs.files(conversation, output.file)
    files = audio.of_files(files, output)
    audio.check_word_times(speech, output_options.json or files.sidecar is not None)
    redo = redo_options.request(conversation, output.file)
    inputs = [Path(script)] if script != "-" else []
    turns = (*conversation.context, *conversation.turns)
    inputs += [turn.recording.path for turn in turns if turn.recording]
    live = check_outputs(output, live, output_options, files, inputs)
    if dry_run:
        print_dry_run(job)
    else:
        run_conversation(RunRequest(job, files, output, live, redo, page))


def print_dry_run(job: SynthesisJob) -> None:
    """Prints turns, tokens, estimated length and context use; of the model, reads only its config and tokenizer.

    Raises:
        ModelError: no such model.
    """
    configure_logging(job.output_options)
    from csm_cli.checkpoint import read_checkpoint_config
    from csm_cli.generation.context_window import WindowLimits, estimate_turns, track_seconds
    from csm_cli.generation.prompt import PromptBuilder

    conversation = job.conversations[0]
    model = read_checkpoint_config(job.speech.model, job.speech.revision, job.speech.offline)
    positions = model.config.backbone.max_seq_len
    prompt_builder = PromptBuilder(model.tokenizer_file, model.config)
    limits = WindowLimits(positions, soft_limit=model.soft_limit)
    context, turns = estimate_turns(conversation, prompt_builder, limits, job.flags, job.retry_policy.chunk_chars)
    seconds = track_seconds(conversation, turns)
    window = {
        "peak": max(estimate.peak_positions for estimate in turns),
        "positions": positions,
        "soft_limit": model.soft_limit or positions,
        "dropped_turns": len({number for estimate in turns for number in estimate.evicted}),
    }
    if job.output_options.json:
        pairs = ((conversation.context, context, None), (conversation.turns, turns, conversation))
        context_records, records = (
            [record | _estimate_record(each) for record, each in zip(turn_records(some, owner), estimates, strict=True)]
            for some, estimates, owner in pairs
        )
        total = {"model": model.name, "context_window": window, "estimated_s": round(seconds, 1)}
        emit_json({**total, "context": context_records, "turns": records})
        return
    for turn, estimate in zip(conversation.context, context, strict=True):
        emit(f"  context  {_describe_estimate(turn, estimate, 0)}")
    for number, (turn, estimate) in enumerate(zip(conversation.turns, turns, strict=True), 1):
        emit(f"{number:>9}  {_describe_estimate(turn, estimate, number)}")
        if spelled := spelled_record(turn, conversation).get("spelled"):
            emit(f"{'':>9}  read as: {' '.join(spelled.split())}")
    emit(f"about {format_duration(seconds)} in {len(turns)} turns; {context_summary(window)}")


def _estimate_record(estimate: TurnEstimate) -> dict[str, Any]:
    return {
        "tokens": estimate.tokens,
        "chunks": estimate.chunks,
        "estimated_s": round(estimate.seconds, 2),
        "positions": estimate.positions,
        "context_positions": estimate.peak_positions,
        "dropped_turns": list(estimate.evicted),
    }


def _describe_estimate(turn: Turn, estimate: TurnEstimate, number: int) -> str:
    name = f"{turn.name} " if turn.name != str(turn.speaker) else ""
    details = [f"about {estimate.seconds:.1f} s"]
    if turn.recording:
        details = [f"{estimate.seconds:.1f} s", str(turn.recording.path)]
    if estimate.chunks > 1:
        details.append(f"{estimate.chunks} chunks")
    details.append(f"{estimate.tokens} tokens, context {estimate.peak_positions}")
    if dropped := [each for each in estimate.evicted if each != number]:
        details.append(f"turn{'s' if len(dropped) > 1 else ''} {format_ranges(dropped)} dropped from context")
    if number in estimate.evicted:
        details.append("its first chunks dropped from context")
    return f"{name}[{turn.speaker}]  {' '.join(turn.text.split())}  [{', '.join(details)}]"
