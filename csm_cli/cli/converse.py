"""csm converse: a script as one track."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.conversation_run import RunRequest, check_outputs, run_conversation
from csm_cli.cli.dry_run import print_dry_run
from csm_cli.cli.live_audio import PlaybackOptions
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.output_files import OutputFiles, stem_files, subtitle_files, turn_files
from csm_cli.cli.report import ReportFile, report_path
from csm_cli.cli.synthesis import make_job
from csm_cli.errors import UsageError
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.generation.incremental import RedoRequest


def _beside(*flags: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel="Beside the track")


def _again(*flags: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel="Speaking again")


@dataclass(frozen=True)
class ExtraOutputs:
    """What is written beside the track, and how loud all of it is."""

    loudness: Annotated[
        float | None, _beside("--loudness", metavar="LUFS", text="EBU R128, such as -19; true peak under -1 dBTP.")
    ] = None
    stems: Annotated[
        bool, _beside("--stems", text="Each speaker's own track, as OUT.ana.wav; they add up to the whole.")
    ] = False
    turns_dir: Annotated[
        Path | None, _beside("--turns-dir", metavar="DIR", text="Each turn as it sounds, as DIR/001-ana.wav.")
    ] = None
    subs: Annotated[
        str | None, _beside("--subs", metavar="FORMS", text="Turn times: srt, vtt, json, or several with commas.")
    ] = None
    sidecar: Annotated[bool, _beside("--sidecar/--no-sidecar", text="All there is to know of it, as OUT.wav.json.")] = (
        True
    )

    def files(self, talk: Conversation, track: Path | None) -> OutputFiles:
        """Raises UsageError where something should lie beside a track that is no file."""
        folder = turn_files(talk, self.turns_dir) if self.turns_dir else ()
        if track is None:
            if self.stems or self.subs:
                raise UsageError("--stems and --subs lie beside the track; name one with -o out.wav")
            return OutputFiles(None, folder)
        return OutputFiles(
            track=track,
            turns=folder,
            stems=stem_files(talk, track) if self.stems else {},
            subtitles=subtitle_files(self.subs, track) if self.subs else {},
            sidecar=track.with_name(f"{track.name}.json") if self.sidecar else None,
        )

    def loud(self, talk: Conversation) -> Conversation:
        """`talk` as loud as asked for.

        Raises:
            UsageError: an impossible value.
        """
        if self.loudness is None:
            return talk
        from csm_cli.audio.loudness import MAX_LUFS, MIN_LUFS

        if not (math.isfinite(self.loudness) and MIN_LUFS <= self.loudness <= MAX_LUFS):
            raise UsageError(f"--loudness takes LUFS from {MIN_LUFS:g} to {MAX_LUFS:g}, not {self.loudness:g}")
        return replace(talk, loudness=self.loudness)


@dataclass(frozen=True)
class RedoOptions:
    """What of a run before is kept."""

    redo: Annotated[
        str | None, _again("--redo", metavar="TURNS", text="Speak these again with new seeds, as in 7,12-14.")
    ] = None
    cascade: Annotated[
        bool, _again("--cascade", text="Where a turn is spoken again, speak all that follow again too.")
    ] = False
    fresh: Annotated[bool, _again("--fresh", text="Speak everything again; keep nothing of the run before.")] = False

    def wish(self, talk: Conversation, track: Path | None) -> RedoRequest:
        """Raises UsageError where turns are named that cannot be spoken again."""
        from csm_cli.generation.incremental import RedoRequest

        if self.redo is not None and track is None:
            raise UsageError("--redo goes by what is kept beside the track; name it with -o out.wav")
        numbers = frozenset(_numbers(self.redo)) if self.redo is not None else frozenset()
        for number in sorted(numbers):
            if not 1 <= number <= len(talk.turns):
                raise UsageError(f"--redo {self.redo}: there is no turn {number}; the script has {len(talk.turns)}")
            if talk.turns[number - 1].recording:
                raise UsageError(f"--redo {self.redo}: turn {number} is a recording; leave it out")
        return RedoRequest(numbers, self.cascade, self.fresh)


def converse(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="YAML, JSON or JSONL; - is standard input.")],
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print what would be spoken, and how long; the model is not loaded.")
    ] = False,
    report: ReportFile = None,
    *,
    beside: ExtraOutputs,
    again: RedoOptions,
    speech: SynthesisFlags,
    output: OutputFile,
    live: PlaybackOptions,
    output_options: OutputOptions,
) -> None:
    """Speak a dialogue as one track.

    Turns are kept beside it as they come out, in .OUT.wav.csm: the same command again speaks only what has changed.
    """
    from csm_cli.script import read_script

    talk = beside.loud(read_script(script))
    job = make_job([talk], speech, output_options)
    if not output.output and dry_run:
        print_dry_run(job)
        return
    page = report_path(report)
    files = replace(beside.files(talk, output.file), kind=live.format)
    wish = again.wish(talk, output.file)
    live = check_outputs(output, live, output_options, files, _read(script, talk))
    if dry_run:
        print_dry_run(job)
    else:
        run_conversation(RunRequest(job, files, output, live, wish, page))


def _read(script: str, talk: Conversation) -> Iterator[Path]:
    if script != "-":
        yield Path(script)
    yield from (turn.recording.path for turn in (*talk.context, *talk.turns) if turn.recording)


def _numbers(text: str) -> Iterator[int]:
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UsageError(f"--redo takes numbers of turns, as in 7,12-14, not {text!r}")
        yield from range(first, last + 1)
