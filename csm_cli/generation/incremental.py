"""Incremental runs: which turns of a conversation are reused from the turn cache, and which are generated again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from csm_cli.audio.io import Audio
from csm_cli.generation.chunking import spell
from csm_cli.generation.events import Utterance
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.generation.turn_cache import SCHEMA, CachedTake, CachedTurn, TurnCache
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.types import Conversation, Turn, turn_seed


@dataclass(frozen=True)
class RedoRequest:
    """Which turns are generated again although they are cached.

    turns: numbers (from 1) of turns that get new seeds. cascade: a turn is also generated again if any turn before it
    changed. fresh: all are generated again. source: a track whose cached turns may be reused too. keep_takes: store all
    takes, those of turns that are generated again included.
    """

    turns: frozenset[int] = frozenset()
    cascade: bool = False
    fresh: bool = False
    source: Path | None = None
    keep_takes: bool = False


class IncrementalRun:
    """One run over a conversation, some of whose turns are cached.

    script: the conversation as written. conversation: the one to synthesize, with recordings in place of reused turns
    and with the seeds of the others. flags: the options to synthesize it with. reused: cached turns by turn number.
    cached: the finished turns without recordings, by turn number.
    outdated: numbers of the reused turns before which another turn is spoken than when they were generated.
    """

    def __init__(self, cache: TurnCache, script: Conversation, setup: SynthesisSetup, redo: RedoRequest) -> None:
        self.script = script
        self.flags = replace(setup.flags, seed=None)  # each turn has its seed in its own options
        self.reused: dict[int, CachedTurn] = {}
        self.cached: dict[int, CachedTurn] = {}
        self.outdated: list[int] = []
        self._cache, self._setup, self._redo = cache, setup, redo
        context = [setup.turn_content(turn) for turn in script.context]
        single = replace(setup, retry_policy=replace(setup.retry_policy, takes=1))  # more takes are no other turn
        self._start = self._history = fingerprint(SCHEMA, single.content(), context)
        self.fingerprints = [self._fingerprint(turn) for turn in script.turns]
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
            own = candidates.get(self.fingerprints[index], [])
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
                history = fingerprint(history, self.fingerprints[index], cached.digest if cached else "")
        return turns

    def _find(self, candidates: Sequence[CachedTurn], number: int, history: str) -> CachedTurn | None:
        """The cached turn to reuse: of the same requested seed, best with the same history, then nearest, then newest.

        candidates: those with the turn's fingerprint, the newest first. One that was picked by hand stays in its place,
        however many takes are asked for.
        """
        requested = None if self._redo.turns else self._requested_seed(number)
        takes = self._setup.retry_policy.takes
        matches = [
            each
            for each in candidates
            if requested in (None, each.requested_seed) and (each.by_hand or each.requested_takes >= takes)
        ]
        matches.sort(
            key=lambda each: (
                not (each.by_hand and each.number == number),
                each.history != history,
                abs(each.number - number),
            )
        )
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
        used = [replaced.seed, *(take.seed for take in replaced.takes)] if replaced else []
        return max(used) + 1 if seed in used else seed

    def record(self, utterance: Utterance) -> Utterance:
        """Caches the next turn of the conversation; returns it as a turn of the script.

        Raises:
            OutputRefused, OutputFailed: the cache cannot be written.
        """
        number = utterance.number
        turn = self.script.turns[number - 1]
        entry = CachedTurn(number, turn.text, self.fingerprints[number - 1], self._history, "", 0, None, "recorded")
        if cached := self.reused.get(number):
            entry = replace(cached, number=number)
            utterance = as_cached(utterance, cached)
        elif not turn.recording:
            replaced = self._replaced.get(number)
            entry = replace(
                entry,
                seed=utterance.seed,
                requested_seed=replaced.requested_seed if replaced else self._requested_seed(number),
                stop=utterance.stop,
                takes=self._takes(utterance, replaced),
                chunks=tuple((spell(each.text, self.script), each.frames) for each in utterance.segments),
                segments=utterance.segments,
                peak_positions=utterance.peak_positions,
                warnings=utterance.warnings,
                requested_takes=self._setup.retry_policy.takes,
            )
            entry = self._cache.add(entry, utterance)
        if entry.digest:
            self.cached[number] = entry
        self._history = fingerprint(self._history, entry.fingerprint, entry.digest)
        self._finished.append(entry)
        return replace(utterance, conversation=self.script, turn=turn)

    def _takes(self, utterance: Utterance, replaced: CachedTurn | None) -> tuple[CachedTake, ...]:
        """The takes of a new turn; with `keep_takes` stored, after those of the turn that it replaces."""
        takes = list_takes(utterance)
        if not self._redo.keep_takes:
            return takes
        stored = tuple(
            replace(each, digest=self._cache.store(take.codes.numpy(), Audio(take.samples, utterance.audio.rate)))
            if len(take.codes)
            else each
            for each, take in zip(takes, utterance.takes, strict=True)
        )
        earlier = replaced.takes if replaced else ()
        return tuple(replace(each, picked=False) for each in earlier if each.digest) + stored

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


def as_cached(utterance: Utterance, cached: CachedTurn) -> Utterance:
    """An utterance that was read from the cache, as it was when it was generated."""
    return replace(
        utterance,
        stop=cached.stop,
        seed=cached.seed,
        segments=cached.segments,
        peak_positions=cached.peak_positions,
        warnings=cached.warnings,
        cached=True,
    )


def list_takes(utterance: Utterance) -> tuple[CachedTake, ...]:
    """The takes of a generated turn, without files."""
    return tuple(
        CachedTake(
            chunk=take.chunk_number,
            seed=take.seed,
            stop=take.stop,
            duration_s=round(len(take.samples) / utterance.audio.rate, 3),
            fault=take.fault or None,
            transcript=take.transcription.text if take.transcription else None,
            word_error_rate=round(take.transcription.error_rate, 3) if take.transcription else None,
            picked=index in utterance.chosen,
        )
        for index, take in enumerate(utterance.takes)
    )


def take_records(takes: Sequence[CachedTake], folder: Path | None = None) -> list[dict[str, Any]]:
    """The JSON objects of takes, numbered from 1. folder: of their files; `audio` is there where it was stored."""
    records = []
    for number, take in enumerate(takes, 1):
        record = {"number": number, **asdict(take)}
        digest = record.pop("digest")
        records.append(record | ({"audio": str(folder / f"{digest}.wav")} if folder and digest else {}))
    return records
