"""Datasets to a store, piece by piece: what a run that was cut off has finished is not done again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from csm_cli.data.clips import ClipFindings, DatasetEntry, SpeakerNumbers, TrainingClip, TrainingConversation
from csm_cli.data.encode import Encoder, EncodingRecipe
from csm_cli.data.store import StoreWriter
from csm_cli.data.workers import map_processes
from csm_cli.errors import NothingToLearn
from csm_cli.storage.files import exclusive_lock
from csm_cli.storage.fingerprint import fingerprint

SCHEMA = 2  # one more whenever the same clips are to make other shards


@dataclass(frozen=True)
class PrepareProgress:
    """A piece that is done. done_before: by an earlier run. examples: how many it makes."""

    found: ClipFindings
    examples: int
    done_before: bool


@dataclass(frozen=True)
class _Job:
    """One piece, for whichever process makes its shard."""

    number: int
    piece: DatasetEntry
    mark: str
    recipe: EncodingRecipe
    writer: StoreWriter
    done: PrepareProgress | None


class Preparation:
    """Makes the store of a recipe in a folder."""

    def __init__(self, folder: Path, recipe: EncodingRecipe, workers: int = 1) -> None:
        """Raises ModelError as `open_checkpoint`, UsageError or DeviceError as `pick_device`."""
        self._folder, self._workers = folder, workers
        self._recipe = replace(recipe, threads=1) if workers > 1 else recipe
        encoder = _encoder(self._recipe)
        self._writer = StoreWriter(folder, encoder.coding)
        self._basis = _basis(encoder, recipe)
        self._about = {
            "model": encoder.checkpoint.name,
            "revision": encoder.checkpoint.revision,
            "window": encoder.window,
            "held_out_share": recipe.held_out,
        }

    def run(self, pieces: Iterable[DatasetEntry], speakers: SpeakerNumbers) -> Iterator[PrepareProgress]:
        """Each piece when it is on the disk; the store is finished after the last.

        Raises:
            NothingToLearn: no example came of it; no shard of it stays.
            InputError: a dataset cannot be read.
            UsageError: another run is at this folder.
            OutputRefused, OutputFailed: it cannot be written; what was finished stays.
            CsmError: a worker was killed.
        """
        with exclusive_lock(self._folder):
            count = examples = 0
            for step in map_processes(_make, self._jobs(pieces), self._workers):
                count, examples = count + 1, examples + step.examples
                yield step
            if not examples:
                self._writer.discard(count)
                raise NothingToLearn
            self._writer.finish(count, {**self._about, "speakers": speakers.names})

    def _jobs(self, pieces: Iterable[DatasetEntry]) -> Iterator[_Job]:
        for number, piece in enumerate(pieces):
            mark = _mark(self._basis, piece)
            note = self._writer.note(number)
            done = (
                PrepareProgress(ClipFindings.of(note), note["examples"], True)
                if note and note.get("mark") == mark
                else None
            )
            yield _Job(number, [] if done else piece, mark, self._recipe, self._writer, done)


def _make(job: _Job) -> PrepareProgress:
    if job.done:
        return job.done
    examples, found = _encoder(job.recipe).encode(job.piece)
    job.writer.write(job.number, examples, {"mark": job.mark, "examples": len(examples), **found.record()})
    return PrepareProgress(found, len(examples), False)


@lru_cache(maxsize=1)
def _encoder(recipe: EncodingRecipe) -> Encoder:
    return Encoder(recipe)


def _basis(encoder: Encoder, recipe: EncodingRecipe) -> list[Any]:
    """What else than its clips makes a shard what it is."""
    tokenizer = fingerprint(encoder.checkpoint.tokenizer_file)
    return [SCHEMA, asdict(encoder.coding), encoder.window, tokenizer, asdict(recipe.limits), recipe.held_out]


def _mark(basis: list[Any], piece: DatasetEntry) -> str:
    """The same mark, the same shard. Of a sound file its name, size and date count, not the folder it lies in."""
    parts = [
        [item.id, [_clip_mark(clip) for clip in item.clips]]
        if isinstance(item, TrainingConversation)
        else [item.reason, item.detail]
        for item in piece
    ]
    return fingerprint(basis, parts)


def _clip_mark(clip: TrainingClip) -> list[Any]:
    heard = clip.recording
    said = [clip.speaker, clip.text, clip.learned, clip.duration, clip.rate]
    if clip.row is not None:
        said.append(clip.row)
    if heard is None:
        return said
    try:
        stat = heard.path.stat()
        file = [stat.st_size, stat.st_mtime_ns]
    except OSError:  # told where it is read
        file = []
    return [*said, heard.path.name, heard.start, heard.end, *file]
