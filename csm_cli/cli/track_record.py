"""What a finished track was mixed of, stored in its turn cache, so that `csm takes` can mix it without the script."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.cli.output_files import OutputFiles
from csm_cli.errors import InputError
from csm_cli.generation.events import Utterance
from csm_cli.generation.incremental import as_cached
from csm_cli.generation.turn_cache import MAX_INDEX_BYTES, CachedTurn, TurnCache, cache_folder
from csm_cli.report.page import ReportRequest
from csm_cli.storage.files import write_atomically
from csm_cli.storage.paths import contained_path
from csm_cli.storage.untrusted import read_regular
from csm_cli.types import Conversation, Turn

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA = 1


@dataclass(frozen=True)
class TrackModel:
    """The model that spoke a track, as records and tags name it. codebooks, vocab: of the cached codes."""

    name: str
    revision: str | None
    positions: int
    soft_limit: int
    codebooks: int
    vocab: int
    rate: int
    frame_samples: int


@dataclass(frozen=True)
class TrackRecord:
    """The parts of a track.

    fingerprints: of its turns in the turn cache, empty for recordings. sidecar: what its metadata has besides the
    result. facts: of the result, which mixing again does not change. Paths are relative to the track's folder on disk.
    """

    conversation: Conversation
    fingerprints: tuple[str, ...]
    files: OutputFiles
    model: TrackModel
    sidecar: Mapping[str, Any]
    facts: Mapping[str, Any]
    report: ReportRequest | None = None
    schema: int = SCHEMA
    left_out: tuple[Path, ...] = field(default=(), compare=False)  # outputs outside the track's folder

    def save(self, track: Path) -> None:
        """Raises OutputRefused, OutputFailed."""
        base = Path(os.path.abspath(track)).parent  # noqa: PTH100, links stay as they are

        def relative(path: Path) -> Path:
            try:
                return Path(os.path.relpath(os.path.abspath(path), base))  # noqa: PTH100
            except ValueError:  # on another drive
                return path

        write_atomically(record_file(track), _record_type().dump_json(_with_paths(self, relative, relative)))

    @classmethod
    def load(cls, track: Path) -> TrackRecord | None:
        """The record of a track; None if it was not finished. Outputs outside the track's folder are left out.

        Raises:
            InputError: it cannot be read, or was written by another version.
        """
        path = record_file(track)
        hint = "run csm converse again"
        try:
            record = _record_type().validate_json(read_regular(path, MAX_INDEX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not what csm wrote"
            raise InputError(f"{path}: {reason}; {hint}") from error
        if record.schema != SCHEMA or len(record.fingerprints) != len(record.conversation.turns):
            raise InputError(f"{path}: was written by another version of csm; {hint}")
        outside: list[Path] = []

        def contained(path: Path) -> Path:
            try:
                return contained_path(track.parent, path.as_posix())
            except InputError:
                outside.append(path)
                return track

        record = _with_paths(record, contained, lambda path: track.parent / path)
        files = replace(
            record.files,
            track=track,
            turns=() if track in record.files.turns else record.files.turns,
            stems={name: path for name, path in record.files.stems.items() if path != track},
            subtitles={name: path for name, path in record.files.subtitles.items() if path != track},
            sidecar=None if record.files.sidecar == track else record.files.sidecar,
        )
        report = None if record.report and record.report.path == track else record.report
        return replace(record, files=files, report=report, left_out=tuple(outside))

    def cached_turns(self, turns: TurnCache) -> dict[int, CachedTurn]:
        """The track's turns in its cache, by number.

        Raises:
            InputError: one is not there any more.
        """
        newest = {(turn.number, turn.fingerprint): turn for turn in turns.turns}
        found = {
            number: newest.get((number, fingerprint))
            for number, fingerprint in enumerate(self.fingerprints, 1)
            if fingerprint
        }
        if missing := [number for number, turn in found.items() if turn is None]:
            raise InputError(f"{turns.output}: turn {missing[0]} is not cached any more; run csm converse again")
        return {number: turn for number, turn in found.items() if turn}

    def utterances(self, turns: TurnCache, cached: Mapping[int, CachedTurn]) -> Iterator[Utterance]:
        """The turns, read from the cache and from their recordings.

        Raises:
            InputError: cached files are damaged. AudioUnreadable: a recording is missing.
        """
        import numpy as np

        from csm_cli.audio.io import read_audio

        for number, turn in enumerate(self.conversation.turns, 1):
            if recording := turn.recording:
                audio = read_audio(recording.path, self.model.rate, recording.start, recording.end)
                codes = np.empty((-(-len(audio.samples) // self.model.frame_samples), 0), np.int64)
                yield Utterance(self.conversation, turn, codes, audio, "recorded", number=number)
            elif content := turns.content(cached[number].digest):
                utterance = Utterance(self.conversation, turn, *content, "recorded", number=number)
                yield as_cached(utterance, cached[number])
            else:
                raise InputError(f"{turns.output}: the cached turn {number} is damaged; run csm converse again")


def record_file(track: Path) -> Path:
    return cache_folder(track) / f"{track.name}.track.json"


def _with_paths(record: TrackRecord, output: Callable[[Path], Path], source: Callable[[Path], Path]) -> TrackRecord:
    """A record whose paths of files that are written and read are converted."""

    def turn_path(turn: Turn) -> Turn:
        recording = turn.recording
        return turn if not recording else replace(turn, recording=replace(recording, path=source(recording.path)))

    files, conversation = record.files, record.conversation
    return replace(
        record,
        conversation=replace(
            conversation,
            turns=tuple(map(turn_path, conversation.turns)),
            context=tuple(map(turn_path, conversation.context)),
        ),
        files=replace(
            files,
            track=files.track and output(files.track),
            turns=tuple(map(output, files.turns)),
            stems={name: output(path) for name, path in files.stems.items()},
            subtitles={name: output(path) for name, path in files.subtitles.items()},
            sidecar=files.sidecar and output(files.sidecar),
        ),
        report=record.report and replace(record.report, path=output(record.report.path)),
    )


@cache
def _record_type() -> TypeAdapter[TrackRecord]:
    from pydantic import TypeAdapter

    return TypeAdapter(TrackRecord)
