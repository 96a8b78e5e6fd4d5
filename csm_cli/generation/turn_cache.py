"""The turns of earlier runs, cached beside a track: which are reused, and which are generated again.

The cache of `OUT.wav` is the folder `.OUT.csm` beside it. All tracks with one stem share it, so that `OUT.flac` reuses
the turns of `OUT.wav`. It holds for each turn its audio (float32 WAV) and its codes (.npy, [T, K]), the same of each
take with `--keep-takes`, and two lists of the turns: turns.json, written when a track is finished, and turns.jsonl, to
which a run appends each turn. A line costs the same however many turns there are. turns.jsonl counts only for the
turns.json whose digest is in its first line.

Nothing in the folder is trusted: what is not a cached turn of this checkpoint is generated again, with a warning.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.codes import read_codes, write_codes
from csm_cli.audio.io import Audio
from csm_cli.audio.limits import MAX_SAMPLES
from csm_cli.errors import InputError, OutputFailed, OutputRefused
from csm_cli.generation.events import Segment, Utterance
from csm_cli.storage.files import exclusive_lock, write_together
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.untrusted import parse_json, read_regular
from csm_cli.types import Recording

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LOG = logging.getLogger(__name__)
SCHEMA = 3  # increased whenever cached turns of earlier versions must not be reused
INDEX_FILE, JOURNAL_FILE = "turns.json", "turns.jsonl"
_OLD_INDEX_FILE = "state.json"  # of earlier schemas, in a folder named after the whole file name
MAX_UNUSED_TURNS = 100  # cached beyond those of the track, or as many as the track has
MAX_INDEX_BYTES = 256 << 20  # a turn has about 1 KB
_DIGEST = re.compile(r"[0-9a-f]{16}")
_STOPS = ("cap", "silence", "repeat", "eos", "empty")


@dataclass(frozen=True)
class CachedTake:
    """One take of a turn, or of a chunk of it (from 1).

    picked: it is in the turn. digest: of its codes and audio, which names its files; empty if they were not stored.
    """

    seed: int
    stop: str = ""
    chunk: int = 1
    duration_s: float = 0.0
    fault: str | None = None
    transcript: str | None = None
    word_error_rate: float | None = None
    picked: bool = False
    digest: str = ""


@dataclass(frozen=True)
class CachedTurn:
    """One generated turn.

    fingerprint: digest of its text, speaker, options and model. history: digest of everything before it in the
    conversation when it was generated. digest: of its codes and audio, which names its files. requested_seed: the
    seed asked for, None if it was drawn; seed: the one that was used. chunks: as in `Recording`. requested_takes: of
    each chunk. by_hand: its take was picked by a person.
    """

    number: int
    text: str
    fingerprint: str
    history: str
    digest: str
    seed: int
    requested_seed: int | None
    stop: str
    takes: tuple[CachedTake, ...] = ()
    chunks: tuple[tuple[str, int], ...] = ()
    segments: tuple[Segment, ...] = ()
    peak_positions: int = 0
    warnings: tuple[str, ...] = ()
    requested_takes: int = 1
    by_hand: bool = False


def cache_folder(output: Path) -> Path:
    """The turn cache of a track, shared by all formats of it."""
    return output.with_name(f".{output.stem}.csm")


def lock_track(output: Path) -> AbstractContextManager[None]:
    """Locks the turn cache of an output.

    Raises:
        UsageError: another run uses it. OutputRefused: the folder cannot be written.
    """
    return exclusive_lock(cache_folder(output), shown=output)


def has_cached_turns(output: Path) -> bool:
    """Whether an output has a turn cache, of a finished run or of one that was stopped."""
    return any((cache_folder(output) / name).exists() for name in (INDEX_FILE, JOURNAL_FILE))


@dataclass
class TurnCache:
    """The cached turns of one track, newest last. codebooks, vocab: of the codes that can be reused."""

    output: Path
    codebooks: int
    vocab: int
    turns: list[CachedTurn] = field(default_factory=list)
    _journal: list[CachedTurn] = field(default_factory=list)  # the turns that are not in the index
    _index_digest: str = ""
    _journal_is_whole: bool = False  # so that a line can be appended

    @classmethod
    def open(cls, output: Path, codebooks: int, vocab: int, strict: bool = False) -> TurnCache:
        """The cache of an output; empty if there is none. One that is unreadable or of another schema is ignored.

        Raises:
            InputError: with `strict`, instead of ignoring it.
        """
        cache = cls(output, codebooks, vocab)
        index = cache.folder / INDEX_FILE
        old = output.with_name(f".{output.name}.csm") / _OLD_INDEX_FILE
        try:
            data = read_regular(index, MAX_INDEX_BYTES)
            cache._index_digest = fingerprint(data, length=16)
            record = parse_json(data)
            if record["schema"] == SCHEMA:
                cache.turns = [_cached_turn(json.dumps(each)) for each in record["turns"]]
            elif strict:
                raise InputError(f"{index} was written by another version of csm; run csm converse again")
            else:
                _LOG.warning("%s was written by another version of csm and is ignored", index)
        except FileNotFoundError:
            if old.exists():
                _LOG.warning("the turn cache %s was written by an older csm and is ignored; delete it", old.parent)
        except (OSError, ValueError, LookupError, TypeError) as error:
            if strict:
                raise InputError(f"{index} cannot be read ({_one_line(error)}); run csm converse again") from error
            _LOG.warning("%s cannot be read (%s); all turns are generated again", index, _one_line(error))
        cache._read_journal()
        return cache

    def _read_journal(self) -> None:
        """Adds the turns since the index was written, up to the first line that cannot be read."""
        path = self.folder / JOURNAL_FILE
        try:
            header, *lines = read_regular(path, MAX_INDEX_BYTES).split(b"\n")
            if header != self._journal_header:
                return  # of an earlier index, which includes its turns or rejected them
            for number, line in enumerate(lines[:-1], 2):
                try:
                    self._journal.append(_cached_turn(line))
                except ValueError as error:
                    _LOG.warning("%s:%d cannot be read (%s); turns are generated again", path, number, _one_line(error))
                    break
            self._journal_is_whole = len(self._journal) == len(lines) - 1 and not lines[-1]
        except FileNotFoundError:
            return
        except OSError as error:
            _LOG.warning("%s cannot be read (%s); its turns are generated again", path, error.strerror)
        self.turns += self._journal

    @property
    def _journal_header(self) -> bytes:
        return json.dumps({"schema": SCHEMA, "index": self._index_digest}).encode()

    @property
    def folder(self) -> Path:
        return cache_folder(self.output)

    def add(self, turn: CachedTurn, utterance: Utterance) -> CachedTurn:
        """Writes the codes and audio of a turn at once; returns it with its digest.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written.
        """
        digest = self.store(np.asarray(utterance.codes), utterance.audio)
        stored = replace(turn, digest=digest)
        self.turns.append(stored)
        self._append(stored)
        return stored

    def store(self, codes: NDArray[np.int64], audio: Audio) -> str:
        """Writes codes and audio of a turn or a take; returns their digest. Raises as `add`."""
        digest = _content_digest(codes, audio.samples)
        audio_file = io.BytesIO()
        soundfile.write(audio_file, audio.samples, audio.rate, format="WAV", subtype="FLOAT")
        self._write(zip(self.files(digest), (audio_file.getvalue(), write_codes(codes)), strict=True))
        return digest

    def replace_turn(self, turn: CachedTurn, other: CachedTurn) -> None:
        """Puts another version of a turn, whose files are stored, in its place. Raises as `add`."""
        self.turns = [other if each is turn else each for each in self.turns]
        self._write_index()

    def _append(self, turn: CachedTurn) -> None:
        self._journal.append(turn)
        path = self.folder / JOURNAL_FILE
        if not self._journal_is_whole:
            lines = [self._journal_header, *map(_line, self._journal), b""]
            self._write([(path, b"\n".join(lines))])
            self._journal_is_whole = True
            return
        try:
            with _refusing_links(path).open("ab") as file:
                file.write(_line(turn) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._journal_is_whole = False
            raise OutputFailed(self._not_cached(error.strerror)) from error

    def copy_from(self, other: TurnCache) -> None:
        """Adds the turns of another track's cache, as older than those here.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written.
        """
        present = {turn.digest for turn in self.turns}
        turns = [turn for turn in other.turns if turn.digest not in present and other.is_intact(turn)]
        if turns:
            takes = {take.digest for turn in turns for take in turn.takes if take.digest}
            for digest in dict.fromkeys([*(turn.digest for turn in turns), *takes]):
                if all(path.is_file() for path in other.files(digest)):
                    self._write(
                        zip(self.files(digest), (path.read_bytes() for path in other.files(digest)), strict=True)
                    )
            self.turns = [*turns, *self.turns]
            self._write_index()

    def prune(self, current: Sequence[CachedTurn], rejected: Sequence[CachedTurn]) -> None:
        """Keeps the turns of the track, and the newest of the others: a script may contain them again.

        Rejected turns are removed. Without any current turn nothing changes.
        """
        if not current:
            return
        # by digest and number first: turns are compared field by field, and there may be thousands
        leaving = {(turn.digest, turn.number): turn for turn in (*current, *rejected)}
        others = [turn for turn in self.turns if leaving.get((turn.digest, turn.number)) != turn]
        self.turns = [*others[-max(MAX_UNUSED_TURNS, len(current)) :], *current]
        self._write_index()
        digests = {digest for turn in self.turns for digest in (turn.digest, *(take.digest for take in turn.takes))}
        for path in self.folder.iterdir():
            if path.suffix in (".wav", ".npy") and _DIGEST.fullmatch(path.stem) and path.stem not in digests:
                path.unlink(missing_ok=True)

    def recording(self, turn: CachedTurn) -> Recording:
        audio, codes = self.files(turn.digest)
        return Recording(audio, codes_path=codes, chunks=turn.chunks)

    def is_intact(self, turn: CachedTurn) -> bool:
        """Whether a turn's files still hold what was written; logs a warning otherwise."""
        content = self.content(turn.digest)
        frames = (
            sum(count for _, count in turn.chunks) if turn.chunks and content else len(content[0]) if content else 0
        )
        intact = content is not None and frames == len(content[0])
        if not intact:
            _LOG.warning("the cached turn %d is damaged and is generated again", turn.number)
        return intact

    def content(self, digest: str) -> tuple[NDArray[np.int64], Audio] | None:
        """The codes [T, K] and the audio of a turn or a take; None if its files do not hold what was written."""
        audio, codes = self.files(digest)
        try:
            array = read_codes(codes, self.codebooks, self.vocab)
            with soundfile.SoundFile(audio) as file:
                samples, rate = file.read(min(file.frames, MAX_SAMPLES), dtype="float32"), file.samplerate
            return (array, Audio(samples, rate)) if _content_digest(array, samples) == digest else None
        except (OSError, ValueError, TypeError, soundfile.SoundFileError):
            return None

    def files(self, digest: str) -> tuple[Path, Path]:
        """The audio and the codes of a turn or a take."""
        return self.folder / f"{digest}.wav", self.folder / f"{digest}.npy"

    def _write_index(self) -> None:
        text = json.dumps(
            {"schema": SCHEMA, "turns": [asdict(turn) for turn in self.turns]}, ensure_ascii=False, indent=1
        )
        data = text.encode("utf-8", "replace")
        self._write([(self.folder / INDEX_FILE, data)])
        self._index_digest, self._journal, self._journal_is_whole = fingerprint(data, length=16), [], False
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)

    def _write(self, files: Iterable[tuple[Path, bytes]]) -> None:
        try:
            write_together((_refusing_links(path), data) for path, data in files)
        except (OutputFailed, OutputRefused) as error:  # names the output: users do not know the cache's files
            raise type(error)(self._not_cached(getattr(error.__cause__, "strerror", None) or error)) from error

    def _not_cached(self, reason: object) -> str:
        hint = f"free some space, remove {self.folder}, or choose another -o, and run again"
        return f"{self.output}: its turns could not be cached beside it ({reason}); {hint}"


def _refusing_links(path: Path) -> Path:
    """The path, where it is not a link: the cache of a folder that is somebody else's may lead anywhere."""
    if path.is_symlink():
        raise OutputRefused(f"{path} is a link")
    return path


def _content_digest(codes: NDArray[np.int64], samples: NDArray[np.float32]) -> str:
    return fingerprint(codes.astype(np.int16).tobytes(), samples.tobytes(), length=16)


def _line(turn: CachedTurn) -> bytes:
    return json.dumps(asdict(turn), ensure_ascii=False).encode("utf-8", "replace")


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _cached_turn(record: str | bytes) -> CachedTurn:
    """A turn from its JSON object. Raises ValueError where it is none."""
    turn = _turn_type().validate_json(record, strict=True)
    problems = (
        turn.number < 1 and "its number",
        not _DIGEST.fullmatch(turn.digest) and "its digest, which names files",
        turn.stop not in _STOPS and "how it stopped",
        any(each.digest and not _DIGEST.fullmatch(each.digest) for each in turn.takes) and "the digests of its takes",
        any(each.chunk < 1 or not math.isfinite(each.duration_s) for each in turn.takes) and "its takes",
        any(frames < 0 for _, frames in turn.chunks) and "its chunks",
        not all(math.isfinite(each.start) and math.isfinite(each.end) for each in turn.segments) and "its segments",
    )
    if problem := next(filter(None, problems), None):
        raise ValueError(f"a turn without {problem}")
    if any(take.picked for take in turn.takes):
        return turn
    chunks = [take.chunk for take in turn.takes]  # of earlier versions, which did not say which takes are in the turn
    takes = tuple(
        replace(take, picked=chunks.count(take.chunk) == 1 or (len(turn.chunks) == 1 and take.seed == turn.seed))
        for take in turn.takes
    )
    return replace(turn, takes=takes)


@cache
def _turn_type() -> TypeAdapter[CachedTurn]:
    from pydantic import TypeAdapter

    return TypeAdapter(CachedTurn)
