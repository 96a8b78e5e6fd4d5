"""csm takes: the takes of a track's turns: list, play, export, and pick another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit, emit_json, emit_path, log_line, warn
from csm_cli.cli.converse import parse_turns
from csm_cli.cli.options import OutputOptions
from csm_cli.errors import InputError, UsageError
from csm_cli.report import format_count
from csm_cli.settings import setting
from csm_cli.storage.paths import expand_path
from csm_cli.types import Turn

if TYPE_CHECKING:
    from csm_cli.audio.io import Audio
    from csm_cli.cli.track_record import TrackRecord
    from csm_cli.generation.turn_cache import CachedTurn, TurnCache


@dataclass(frozen=True)
class StoredTrack:
    """A track's turn cache, and what it was mixed of; record: None where its run was stopped.

    turns: those in the cache, by number.
    """

    path: Path
    cache: TurnCache
    record: TrackRecord | None
    turns: Mapping[int, CachedTurn]

    @classmethod
    def open(cls, path: Path) -> StoredTrack:
        """Raises InputError: no track with a turn cache, or an unreadable one."""
        from csm_cli.cli.track_record import TrackRecord
        from csm_cli.generation.turn_cache import TurnCache, cache_folder, has_cached_turns

        if not has_cached_turns(path):
            found = f"{cache_folder(path)} is missing" if path.exists() else "there is no such track"
            hint = f"csm converse SCRIPT -o {path} --takes 3 --keep-takes makes one"
            raise InputError(f"{path}: has no takes, since {found}; {hint}")
        record = TrackRecord.load(path)
        sizes = (record.model.codebooks, record.model.vocab) if record else (0, 0)
        cache = TurnCache.open(path, *sizes, strict=True)
        turns = record.cached_turns(cache) if record else {turn.number: turn for turn in cache.turns}
        if not turns:
            raise InputError(f"{path}: its turn cache has no turns; run csm converse again")
        return cls(path, cache, record, dict(sorted(turns.items())))

    def written(self, number: int) -> Turn:
        """A turn as the script has it; of a stopped run, only its text is known."""
        return self.record.conversation.turns[number - 1] if self.record else Turn(0, self.turns[number].text)

    def select(self, turns: str | None) -> list[int]:
        """The numbers that `--turns` names, or all; raises UsageError as `parse_turns`."""
        if turns is None:
            return list(self.turns)
        script = self.record.conversation.turns if self.record else [self.written(number) for number in self.turns]
        return sorted(parse_turns(f"--turns {turns}", script) & self.turns.keys())

    def parse_pick(self, option: str, text: str) -> tuple[int, int]:
        """The turn and the take, from 1, of `7=2` or `greeting=2`. Raises UsageError."""
        name, equals, take = text.rpartition("=")
        if not equals or not take.strip().isdecimal() or len(take) > 6:
            raise UsageError(f"{option} takes a turn and the number of a take, as in 7=2, not {text!r}")
        script = self.record.conversation.turns if self.record else ()
        by_id = [number for number, turn in enumerate(script, 1) if turn.id and turn.id == name]
        if name.strip().isdecimal() and len(name) <= 6 and not by_id:
            number = int(name)
        elif by_id:
            (number,) = by_id
        else:
            raise UsageError(f"{option} {text}: there is no turn {name!r}; csm takes {self.path} lists them")
        if number not in self.turns:
            total = len(script) or max(self.turns)
            what = "is a recording" if 1 <= number <= len(script) else f"is not there; the track has {total} turns"
            raise UsageError(f"{option} {text}: turn {number} {what}")
        return number, int(take)

    def take_audio(self, number: int, take: int) -> Audio:
        """The audio of one take. Raises UsageError: there is none; InputError: its file is damaged."""
        takes = self.turns[number].takes
        if not 1 <= take <= len(takes):
            raise UsageError(f"turn {number} has {format_count(len(takes), 'take')}, and no take {take}")
        digest = takes[take - 1].digest
        if not digest:
            hint = f"csm converse with --keep-takes --redo {number} stores new ones"
            raise UsageError(f"take {take} of turn {number} was not stored; {hint}")
        content = self.cache.content(digest) if self.record else None
        if content is None:
            raise InputError(
                f"{self.cache.files(digest)[0]}: is damaged; csm converse with --redo {number} makes new takes"
            )
        return content[1]


def takes(
    track: Annotated[str, typer.Argument(metavar="TRACK", help="A track that csm converse has written.")],
    turns: Annotated[
        str | None, typer.Option("--turns", metavar="TURNS", help="Only these: numbers, ids or speakers.")
    ] = None,
    pick: Annotated[
        list[str] | None,
        typer.Option("--pick", metavar="TURN=TAKE", help="Use this take, as in 7=2, and mix again; repeatable."),
    ] = None,
    play: Annotated[
        list[str] | None, typer.Option("--play", metavar="TURN=TAKE", help="Play this take; repeatable.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Write the takes, as DIR/007-ana-take2.wav.")
    ] = None,
    verify_model: Annotated[str, setting("verify_model", help="faster-whisper model of a track's --word-times.")] = (
        "base.en"
    ),
    *,
    output_options: OutputOptions,
) -> None:
    """List the takes of a track, and mix it with others.

    csm converse --takes 3 --keep-takes stores them.
    Later runs of csm converse keep what was picked.

    Examples:
      csm takes episode.wav
      csm takes episode.wav --pick 7=2 --pick 9=1
    """
    from csm_cli.generation.turn_cache import lock_track

    configure_logging(output_options)
    path = expand_path(track)
    stored = StoredTrack.open(path)
    if pick:
        with lock_track(path):
            stored = mix_picks(StoredTrack.open(path), pick, output_options.quiet, verify_model)
    selected = stored.select(turns)
    if export:
        for file in export_takes(stored, selected, expand_path(str(export))):
            emit_path(file)
    for each in play or ():
        from csm_cli.audio.playback import open_player

        audio = stored.take_audio(*stored.parse_pick("--play", each))
        with open_player(audio.rate) as player:
            player.write(audio.samples)
    if output_options.json:
        emit_json(list_record(stored, selected))
    elif pick:
        emit_path(path)
    elif not (export or play):
        for line in list_lines(stored, selected):
            emit(line)


def list_record(stored: StoredTrack, numbers: Iterable[int]) -> dict[str, Any]:
    """The JSON object of a track's takes."""
    from csm_cli.generation.incremental import take_records

    turns = []
    for number in numbers:
        cached, turn = stored.turns[number], stored.written(number)
        facts = {"number": number, "id": turn.id or None, "speaker": turn.label if stored.record else None}
        facts |= {"text": turn.text, "seed": cached.seed, "stop": cached.stop, "by_hand": cached.by_hand}
        turns.append(facts | {"takes": take_records(cached.takes, stored.cache.folder)})
    return {"track": str(stored.path), "finished": stored.record is not None, "turns": turns}


def list_lines(stored: StoredTrack, numbers: Iterable[int]) -> Iterable[str]:
    """A line for each turn, and one for each take of it; * marks the picked one."""
    from csm_cli.cli.summary import stop_text

    for number in numbers:
        cached, turn = stored.turns[number], stored.written(number)
        speaker = f"{turn.label}: " if stored.record else ""
        yield f"{number:>4}  {speaker}{' '.join(turn.text.split())}"
        chunked = len(cached.chunks) > 1
        for index, take in enumerate(cached.takes, 1):
            details = [f"{take.duration_s:.2f} s", take.fault or stop_text(take.stop), f"seed {take.seed}"]
            details += [f"chunk {take.chunk}"] if chunked else []
            details += [] if take.digest else ["not stored"]
            yield f"{'*' if take.picked else '':>7} {f'{number}={index}':<8}{', '.join(details)}"
    if not stored.record:
        yield "the run of this track was stopped; run csm converse again before takes are picked"


def export_takes(stored: StoredTrack, numbers: Iterable[int], folder: Path) -> list[Path]:
    """Writes the stored takes of some turns, all or none; returns the files.

    Raises:
        UsageError: none is stored. OutputRefused, OutputFailed: the folder cannot be written.
    """
    import numpy as np

    from csm_cli.audio.io import encode_audio
    from csm_cli.batch.items import file_name
    from csm_cli.generation.events import Utterance, audio_tags
    from csm_cli.storage.files import FileContent, write_together

    record = _require_record(stored)
    chosen = {
        folder / f"{number:03d}-{file_name(stored.written(number))}-take{index}.wav": (number, index, take.seed)
        for number in numbers
        for index, take in enumerate(stored.turns[number].takes, 1)
        if take.digest
    }
    if not chosen:
        raise UsageError(f"{stored.path}: none of these turns has stored takes; csm converse --keep-takes stores them")

    def encoded(path: Path) -> FileContent:
        number, index, seed = chosen[path]
        audio, turn = stored.take_audio(number, index), stored.written(number)
        spoken = Utterance(record.conversation, turn, np.empty((0, 0), np.int64), audio, "eos", seed=seed)
        return encode_audio(path, audio, audio_tags([spoken], record.model, record.conversation.title))

    write_together((path, encoded(path)) for path in chosen)
    return list(chosen)


def mix_picks(stored: StoredTrack, picks: Iterable[str], quiet: bool, verify_model: str) -> StoredTrack:
    """Mixes a track, whose cache is locked, with other takes, and writes all its files.

    The cache has the picks before the files are written: the same command, or csm converse, goes on after a crash.

    Raises:
        UsageError: no such turn or take. InputError: a file of the cache, or a recording, cannot be read.
        OutputRefused, OutputFailed: a file cannot be written.
    """
    from csm_cli.cli.conversation_run import finished_record, write_outputs
    from csm_cli.cli.synthesis import mix_events, with_word_times
    from csm_cli.generation.picks import pick_take

    record = _require_record(stored)
    turns = dict(stored.turns)
    for text in picks:
        number, take = stored.parse_pick("--pick", text)
        turns[number] = pick_take(stored.cache, turns[number], take)
        if not quiet:
            log_line(f"turn {number}: take {take} (seed {turns[number].takes[take - 1].seed})")
    finished = mix_events(record.utterances(stored.cache, turns))
    if record.files.word_times:
        from csm_cli.generation.verification import WhisperRecognizer

        finished = with_word_times(finished, WhisperRecognizer(verify_model, finished.conversation.language))
    record.files.check(clobber=True)
    for number, turn in turns.items():
        if turn is not stored.turns[number]:
            stored.cache.replace_turn(stored.turns[number], turn)
    result = finished_record(finished, record.files, record.model, turns)
    metadata = {**record.sidecar, **result, **record.facts}
    write_outputs(finished, record.files, record.model, metadata, record.report)
    if record.left_out:
        names = ", ".join(map(str, record.left_out))
        warn(f"{names}: outside of the track's folder and not written; csm converse writes them")
    return replace(stored, turns=turns)


def _require_record(stored: StoredTrack) -> TrackRecord:
    if stored.record is None:
        raise UsageError(
            f"{stored.path}: its run was stopped, or is of an older csm; run csm converse to its end first"
        )
    return stored.record
