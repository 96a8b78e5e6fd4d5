"""The turns of earlier runs, cached beside a track: which are reused, and which are generated again.

The cache of `OUT.wav` is the folder `.OUT.csm` beside it. All tracks with one stem share it, so that `OUT.flac` reuses
the turns of `OUT.wav`. It holds for each turn its audio (float32 WAV) and its codes (.npy, [T, K]), and two lists of
them: turns.json, written when a track is finished, and turns.jsonl, to which a run appends each turn. A line costs the
same however many turns there are. turns.jsonl counts only for the turns.json whose digest is in its first line.

Nothing in the folder is trusted: what is not a cached turn of this checkpoint is generated again, with a warning.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from csm_cli.audio.codes import read_codes, write_codes
from csm_cli.audio.limits import MAX_SAMPLES
from csm_cli.errors import OutputFailed, OutputRefused
from csm_cli.generation.chunking import spell
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.storage.files import exclusive_lock, write_together
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.untrusted import parse_json, read_regular
from csm_cli.types import Conversation, Recording, Turn, turn_seed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from csm_cli.generation.take import Take

_LOG = logging.getLogger(__name__)
SCHEMA = 3  # increased whenever cached turns of earlier versions must not be reused
INDEX_FILE, JOURNAL_FILE = "turns.json", "turns.jsonl"
_OLD_INDEX_FILE = "state.json"  # of earlier schemas, in a folder named after the whole file name
MAX_UNUSED_TURNS = 100  # cached beyond those of the track, or as many as the track has
MAX_INDEX_BYTES = 256 << 20  # a turn has about 1 KB
_DIGEST = re.compile(r"[0-9a-f]{16}")
_STOPS = ("cap", "silence", "repeat", "eos", "empty")


@dataclass(frozen=True)
class CachedTurn:
    """One generated turn.

    fingerprint: digest of its text, speaker, options and model. history: digest of everything before it in the
    conversation when it was generated. digest: of its codes and audio, which names its files. requested_seed: the
    seed asked for, None if it was drawn; seed: the one that was used. chunks: as in `Recording`.
    """

    number: int
    text: str
    fingerprint: str
    history: str
    digest: str
    seed: int
    requested_seed: int | None
    stop: str
    takes: tuple[dict[str, Any], ...] = ()
    chunks: tuple[tuple[str, int], ...] = ()
    segments: tuple[Segment, ...] = ()
    peak_positions: int = 0
    warnings: tuple[str, ...] = ()


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
    def open(cls, output: Path, codebooks: int, vocab: int) -> TurnCache:
        """The cache of an output; empty if there is none. One that is unreadable or of another schema is ignored."""
        cache = cls(output, codebooks, vocab)
        index = cache.folder / INDEX_FILE
        old = output.with_name(f".{output.name}.csm") / _OLD_INDEX_FILE
        try:
            data = read_regular(index, MAX_INDEX_BYTES)
            cache._index_digest = fingerprint(data, length=16)
            record = parse_json(data)
            if record["schema"] == SCHEMA:
                cache.turns = [_cached_turn(json.dumps(each)) for each in record["turns"]]
            else:
                _LOG.warning("%s was written by another version of csm and is ignored", index)
        except FileNotFoundError:
            if old.exists():
                _LOG.warning("the turn cache %s was written by an older csm and is ignored; delete it", old.parent)
        except (OSError, ValueError, LookupError, TypeError) as error:
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
        codes, samples = utterance.codes.numpy(), utterance.audio.samples
        stored = replace(turn, digest=_content_digest(codes, samples))
        audio_file = io.BytesIO()
        soundfile.write(audio_file, samples, utterance.audio.rate, format="WAV", subtype="FLOAT")
        self._write(zip(self._files(stored), (audio_file.getvalue(), write_codes(codes)), strict=True))
        self.turns.append(stored)
        self._append(stored)
        return stored

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
            for turn in turns:
                self._write(zip(self._files(turn), (path.read_bytes() for path in other._files(turn)), strict=True))
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
        digests = {turn.digest for turn in self.turns}
        for path in self.folder.iterdir():
            if path.suffix in (".wav", ".npy") and _DIGEST.fullmatch(path.stem) and path.stem not in digests:
                path.unlink(missing_ok=True)

    def recording(self, turn: CachedTurn) -> Recording:
        audio, codes = self._files(turn)
        return Recording(audio, codes_path=codes, chunks=turn.chunks)

    def is_intact(self, turn: CachedTurn) -> bool:
        """Whether a turn's files still hold what was written; logs a warning otherwise."""
        audio, codes = self._files(turn)
        try:
            array = read_codes(codes, self.codebooks, self.vocab)
            with soundfile.SoundFile(audio) as file:
                samples = file.read(min(file.frames, MAX_SAMPLES), dtype="float32")
            frames = sum(count for _, count in turn.chunks) if turn.chunks else len(array)
            intact = frames == len(array) and _content_digest(array, samples) == turn.digest
        except (OSError, ValueError, TypeError, soundfile.SoundFileError):
            intact = False
        if not intact:
            _LOG.warning("the cached turn %d is damaged and is generated again", turn.number)
        return intact

    def _files(self, turn: CachedTurn) -> tuple[Path, Path]:
        return self.folder / f"{turn.digest}.wav", self.folder / f"{turn.digest}.npy"

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
        any(type(take.get("seed")) is not int for take in turn.takes) and "the seeds of its takes",
        any(frames < 0 for _, frames in turn.chunks) and "its chunks",
        not all(math.isfinite(each.start) and math.isfinite(each.end) for each in turn.segments) and "its segments",
    )
    if problem := next(filter(None, problems), None):
        raise ValueError(f"a turn without {problem}")
    return turn


@cache
def _turn_type() -> TypeAdapter[CachedTurn]:
    from pydantic import TypeAdapter

    return TypeAdapter(CachedTurn)


@dataclass(frozen=True)
class RedoRequest:
    """Which turns are generated again although they are cached.

    turns: numbers (from 1) of turns that get new seeds. cascade: a turn is also generated again if any turn before it
    changed. fresh: all are generated again. source: a track whose cached turns may be reused too.
    """

    turns: frozenset[int] = frozenset()
    cascade: bool = False
    fresh: bool = False
    source: Path | None = None


class IncrementalRun:
    """One run over a conversation, some of whose turns are cached.

    script: the conversation as written. conversation: the one to synthesize, with recordings in place of reused turns
    and with the seeds of the others. flags: the options to synthesize it with. reused: cached turns by turn number.
    outdated: numbers of the reused turns before which another turn is spoken than when they were generated.
    """

    def __init__(self, cache: TurnCache, script: Conversation, setup: SynthesisSetup, redo: RedoRequest) -> None:
        self.script = script
        self.flags = replace(setup.flags, seed=None)  # each turn has its seed in its own options
        self.reused: dict[int, CachedTurn] = {}
        self.outdated: list[int] = []
        self._cache, self._setup, self._redo = cache, setup, redo
        context = [setup.turn_content(turn) for turn in script.context]
        self._start = self._history = fingerprint(SCHEMA, setup.content(), context)
        self._fingerprints = [self._fingerprint(turn) for turn in script.turns]
        self._before = list(cache.turns)
        self._finished: list[CachedTurn] = []
        self._replaced: dict[int, CachedTurn] = {}  # the cached turns that --redo replaces
        self.conversation = replace(script, turns=tuple(self._plan()))

    def _plan(self) -> list[Turn]:
        """The turns with recordings where cached ones are reused, and with seeds elsewhere."""
        candidates: dict[str, list[CachedTurn]] = {}  # by fingerprint, the newest first
        for each in () if self._redo.fresh else reversed(self._cache.turns):
            candidates.setdefault(each.fingerprint, []).append(each)
        turns = list(self.script.turns)
        history = self._start  # empty once it cannot be known before synthesis
        for index, turn in enumerate(self.script.turns):
            number = index + 1
            own = candidates.get(self._fingerprints[index], [])
            cached = None if turn.recording else self._find(own, number, history)
            if cached:
                own.remove(cached)
            if cached and number in self._redo.turns:
                self._replaced[number] = cached
                cached = None
            elif cached and self._redo.cascade and cached.history != history:
                cached = None
            if cached:
                self.reused[number] = cached
                self.outdated += [number] if cached.history != history else []
                turns[index] = replace(turn, recording=self._cache.recording(cached))
            elif not turn.recording:
                turns[index] = replace(turn, options=replace(turn.options, seed=self._seed(number)))
                history = ""
            if history:
                history = fingerprint(history, self._fingerprints[index], cached.digest if cached else "")
        return turns

    def _find(self, candidates: Sequence[CachedTurn], number: int, history: str) -> CachedTurn | None:
        """The cached turn to reuse: of the same requested seed, best with the same history, then nearest, then newest.

        candidates: those with the turn's fingerprint, the newest first.
        """
        requested = None if self._redo.turns else self._requested_seed(number)
        matches = [each for each in candidates if requested in (None, each.requested_seed)]
        matches.sort(key=lambda each: (each.history != history, abs(each.number - number)))
        return next((each for each in matches if self._cache.is_intact(each)), None)

    def _fingerprint(self, turn: Turn) -> str:
        """Digest of everything that determines a turn's audio, except its seed and the turns before it."""
        options = None if turn.recording else replace(self._setup.options(self.script, turn), seed=None).set_values()
        return fingerprint(self._start, self._setup.turn_content(turn, self.script), options)

    def _requested_seed(self, number: int) -> int | None:
        return self._setup.options(self.script, self.script.turns[number - 1]).seed

    def _seed(self, number: int) -> int | None:
        """The seed of a turn's first take, None to derive it from the script's; a new one for turns of `--redo`."""
        flags, turn = self._setup.flags, self.script.turns[number - 1]
        if number not in self._redo.turns:
            return turn.options.seed if flags.seed is None else turn_seed(flags, turn, number - 1, 0)
        if flags.seed is None:
            return secrets.randbelow(2**31)
        seed, replaced = turn_seed(flags, turn, number - 1, 0), self._replaced.get(number)
        used = [replaced.seed, *(take["seed"] for take in replaced.takes)] if replaced else []
        return max(used) + 1 if seed in used else seed

    def record(self, utterance: Utterance) -> Utterance:
        """Caches the next turn of the conversation; returns it as a turn of the script.

        Raises:
            OutputRefused, OutputFailed: the cache cannot be written.
        """
        number = utterance.number
        turn = self.script.turns[number - 1]
        entry = CachedTurn(number, turn.text, self._fingerprints[number - 1], self._history, "", 0, None, "recorded")
        if cached := self.reused.get(number):
            entry = replace(cached, number=number)
            utterance = replace(
                utterance,
                stop=cached.stop,
                seed=cached.seed,
                segments=cached.segments,
                peak_positions=cached.peak_positions,
                warnings=cached.warnings,
                cached=True,
            )
        elif not turn.recording:
            replaced = self._replaced.get(number)
            entry = replace(
                entry,
                seed=utterance.seed,
                requested_seed=replaced.requested_seed if replaced else self._requested_seed(number),
                stop=utterance.stop,
                takes=tuple(take_record(take, utterance.audio.rate) for take in utterance.takes),
                chunks=tuple((spell(each.text, self.script), each.frames) for each in utterance.segments),
                segments=utterance.segments,
                peak_positions=utterance.peak_positions,
                warnings=utterance.warnings,
            )
            entry = self._cache.add(entry, utterance)
        self._history = fingerprint(self._history, entry.fingerprint, entry.digest)
        self._finished.append(entry)
        return replace(utterance, conversation=self.script, turn=turn)

    @property
    def finished_count(self) -> int:
        """How many turns are finished, in order."""
        return len(self._finished)

    @property
    def remaining_redo(self) -> list[int]:
        """Numbers of the turns that were asked for again and are not finished."""
        requested = range(1, len(self.script.turns) + 1) if self._redo.fresh else sorted(self._redo.turns)
        return [
            number
            for number in requested
            if number > self.finished_count and not self.script.turns[number - 1].recording
        ]

    def finish(self) -> None:
        """Removes replaced turns from the cache; called when the track is written."""
        rejected = self._before if self._redo.fresh else list(self._replaced.values())
        self._cache.prune([entry for entry in self._finished if entry.digest], rejected)


def take_record(take: Take, rate: int) -> dict[str, Any]:
    """The JSON object of a take."""
    transcription = take.transcription
    return {
        "chunk": take.chunk_number,
        "seed": take.seed,
        "stop": take.stop,
        "duration_s": round(len(take.samples) / rate, 3),
        "fault": take.fault or None,
        "transcript": transcription.text if transcription else None,
        "word_error_rate": round(transcription.error_rate, 3) if transcription else None,
    }
