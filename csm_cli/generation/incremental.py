"""Speaking a dialogue again: which of its turns are kept from the run before, and which are spoken."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from csm_cli.generation.chunking import apply_lexicon
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.generation.turn_cache import SCHEMA, CachedTurn, TurnCache
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.types import Conversation, Turn, turn_seed

if TYPE_CHECKING:
    from csm_cli.generation.take import Take


@dataclass(frozen=True)
class RedoRequest:
    """What is spoken again. redo: these turns (from 1), with new seeds; cascade: also all that follows a change."""

    redo: frozenset[int] = frozenset()
    cascade: bool = False
    fresh: bool = False


class IncrementalRun:
    """One run over a dialogue whose turns may be there already.

    talk: as it is written; conversation: as it is spoken, with recordings in the place of the turns that are kept, and
    with the seeds of --redo and --seed in its turns; flags: the flags it is spoken with.
    kept: these, by their index; stale: those among them before which something else is said now than when they were
    spoken.
    """

    def __init__(self, state: TurnCache, talk: Conversation, voice: SynthesisSetup, wish: RedoRequest) -> None:
        self.talk = talk
        self._state, self._voice, self._wish = state, voice, wish
        base = _base(talk, voice)
        self._marks = [_mark(base, talk, turn, voice) for turn in talk.turns]
        self._past = base
        self._before = list(state.turns)
        self._now: list[CachedTurn] = []
        self._again: dict[int, CachedTurn] = {}  # what is spoken again because somebody wished so
        self.kept: dict[int, CachedTurn] = {}
        self.stale: list[int] = []
        self.conversation = replace(talk, turns=tuple(self._planned(base)))
        self.flags = replace(voice.flags, seed=None)

    def _planned(self, past: str) -> list[Turn]:
        """The turns as they are spoken now; `past` is empty where it cannot be known before it is spoken."""
        pool = [] if self._wish.fresh else list(self._state.turns)
        turns = list(self.talk.turns)
        for index, turn in enumerate(turns):
            found = None if turn.recording else self._found(pool, index, past)
            if found:
                pool.remove(found)
            if index + 1 in self._wish.redo:
                turns[index] = self._with_new_seed(turn, index + 1)
                self._again |= {index: found} if found else {}
                found = None
            elif found and self._wish.cascade and found.heard != past:
                found = None
            if found:
                self.kept[index] = found
                self.stale += [index] if found.heard != past else []
                turns[index] = replace(turn, recording=self._state.recording(found))
            elif self._voice.flags.seed is not None and index + 1 not in self._wish.redo and not turn.recording:
                seed = turn_seed(self._voice.flags, turn, index, 0)
                turns[index] = replace(turn, options=replace(turn.options, seed=seed))
            past = (
                fingerprint(past, self._marks[index], found.name if found else "")
                if past and turns[index].recording
                else ""
            )
        return turns

    def _found(self, pool: Sequence[CachedTurn], index: int, past: str) -> CachedTurn | None:
        """The newest turn of the same mark that was said after the same, or else at the nearest place."""
        given = None if self._wish.redo else self._given(index)
        alike = [each for each in reversed(pool) if each.mark == self._marks[index] and given in (None, each.given)]
        alike.sort(key=lambda each: (each.heard != past, abs(each.number - 1 - index)))
        return next((each for each in alike if self._state.intact(each)), None)

    def _given(self, index: int) -> int | None:
        """The seed that somebody asked for."""
        return self._voice.options(self.talk, self.talk.turns[index]).seed

    def _with_new_seed(self, turn: Turn, number: int) -> Turn:
        first = self._voice.flags.seed
        seed = secrets.randbelow(2**31) if first is None else first + sorted(self._wish.redo).index(number)
        return replace(turn, options=replace(turn.options, seed=seed))

    def hear(self, utterance: Utterance) -> Utterance:
        """Keeps the next turn of the conversation as it came out, at once; returns it as it is to be told.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written to.
        """
        index = len(self._now)
        turn = self.talk.turns[index]
        entry = CachedTurn(index + 1, turn.text, self._marks[index], self._past, "", 0, None, "recorded")
        if kept := self.kept.get(index):
            entry = replace(kept, number=index + 1)
            utterance = _restored(utterance, kept)
        elif not turn.recording:
            given = self._again[index].given if index in self._again else self._given(index)
            entry = replace(_noted(entry, utterance, self.talk.lexicon), given=given)
            entry = self._state.add(entry, utterance)
        self._past = fingerprint(self._past, entry.mark, entry.name)
        self._now.append(entry)
        return replace(utterance, conversation=self.talk, turn=turn)

    @property
    def done(self) -> int:
        """How many turns have come out."""
        return len(self._now)

    @property
    def left(self) -> list[int]:
        """Of the turns that the same command would speak again, those that have not come out yet."""
        wished = range(1, len(self.talk.turns) + 1) if self._wish.fresh else sorted(self._wish.redo)
        return [number for number in wished if number > self.done and not self.talk.turns[number - 1].recording]

    def settle(self) -> None:
        """The track is written: what it was to replace is evicted."""
        disliked = self._before if self._wish.fresh else list(self._again.values())
        self._state.settle([entry for entry in self._now if entry.name], disliked)


def take_record(take: Take, rate: int) -> dict[str, Any]:
    """A take as JSON has it."""
    heard = take.transcription
    return {
        "part": take.chunk_number,
        "seed": take.seed,
        "stop": take.stop,
        "duration_s": round(len(take.samples) / rate, 3),
        "fault": take.fault or None,
        "heard": heard.text if heard else None,
        "word_error_rate": round(heard.error_rate, 3) if heard else None,
    }


def _noted(entry: CachedTurn, utterance: Utterance, lexicon: Mapping[str, str]) -> CachedTurn:
    """`entry` with all that is told of an utterance, and how the model heard it."""
    return replace(
        entry,
        seed=utterance.seed,
        stop=utterance.stop,
        takes=tuple(take_record(take, utterance.audio.rate) for take in utterance.takes),
        parts=tuple((apply_lexicon(piece.text, lexicon), piece.frames) for piece in utterance.segments),
        pieces=tuple(asdict(piece) for piece in utterance.segments),
        positions=utterance.peak_positions,
        warnings=utterance.warnings,
    )


def _restored(utterance: Utterance, kept: CachedTurn) -> Utterance:
    """What a kept turn was told to be when it was spoken."""
    return replace(
        utterance,
        stop=kept.stop,
        seed=kept.seed,
        segments=tuple(Segment(**piece) for piece in kept.pieces),
        peak_positions=kept.positions,
        warnings=kept.warnings,
        cached=True,
    )


def _base(talk: Conversation, voice: SynthesisSetup) -> str:
    """Of the model, how takes are chosen, and the context."""
    return fingerprint(SCHEMA, voice.content(), [voice.turn_content(turn, {}) for turn in talk.context])


def _mark(base: str, talk: Conversation, turn: Turn, voice: SynthesisSetup) -> str:
    """Of all that a turn's sound depends on but its seed and what was said before it."""
    options = None if turn.recording else asdict(replace(voice.options(talk, turn), seed=None))
    return fingerprint(base, voice.turn_content(turn, talk.lexicon), options)
