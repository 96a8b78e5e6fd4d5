"""Conversations that the server holds for its clients: speakers, turns and the takes of each, bounded in memory."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any

from torch import Tensor

from csm_cli.errors import InputError, ServerBusy
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import Utterance
from csm_cli.generation.history import PastTurn, resumed_state
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.context import ServerContext, new_id
from csm_cli.serve.limits import (
    MAX_CONVERSATION_SECONDS,
    MAX_STORED_SECONDS,
    MAX_TAKES,
    MAX_TURNS,
    MIN_IDLE_SECONDS,
)
from csm_cli.serve.problems import Conflict, NotFound
from csm_cli.serve.service import SpeechJob
from csm_cli.serve.spoken_response import SpeechListener
from csm_cli.types import Conversation, GenerationOptions, Turn

DEFAULT_GAP = 0.25  # seconds before each turn but the first
_take_ids = count(1)


@dataclass(frozen=True, eq=False)
class HeldClip:
    """Speech that the model hears before the turns. tokens: [S, K + 1], as prompted.

    data: its file, for exports; empty for a bundled voice, which a script names. suffix: of that file.
    """

    turn: Turn
    tokens: Tensor
    data: bytes = b""
    suffix: str = "wav"
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class HeldSpeaker:
    """A speaker. voice: the name of a saved voice, if it is one. clip: gives the voice; None lets the model choose."""

    name: str
    voice: str | None = None
    clip: HeldClip | None = None

    def record(self) -> dict[str, Any]:
        uploaded = self.clip.turn.text if self.clip and not self.voice else None
        return {"name": self.name, "voice": self.voice, **({"ref_text": uploaded} if uploaded else {})}


@dataclass(frozen=True, eq=False)
class HeldTake:
    """One take of a turn. history: what it follows, as `HeldConversation.history`."""

    number: int
    utterance: Utterance
    history: tuple[int, ...] = ()
    id: int = field(default_factory=_take_ids.__next__)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def past(self) -> PastTurn:
        """The turn as later ones follow it."""
        return PastTurn.of(self.utterance)

    @property
    def seed(self) -> int | None:
        """None for a recording."""
        return None if self.utterance.stop == "recorded" else self.utterance.seed

    def record(self) -> dict[str, Any]:
        utterance = self.utterance
        return {
            "number": self.number,
            "seed": self.seed,
            "stop": utterance.stop,
            "fault": utterance.fault or None,
            "duration": round(utterance.audio.duration, 3),
            "created": self.created,
        }


@dataclass(eq=False)
class HeldTurn:
    """A turn and its takes. picked: the number of the take that counts; 0 without one."""

    speaker: int
    text: str
    gap: float = 0.0
    gain: float = 0.0
    recorded: bool = False
    id: str = field(default_factory=lambda: new_id("turn"))
    takes: list[HeldTake] = field(default_factory=list)
    picked: int = 0

    @property
    def take(self) -> HeldTake | None:
        """The picked take."""
        return next((take for take in self.takes if take.number == self.picked), None)

    def find_take(self, number: int) -> HeldTake:
        """Raises NotFound: no such take."""
        for take in self.takes:
            if take.number == number:
                return take
        raise NotFound(f"take: the turn has no take {number}")

    def change_words(self, speaker: int, text: str) -> None:
        """Changes what is spoken, or by whom. Takes that were spoken are dropped; a recording only has other words."""
        recordings = [take.utterance for take in self.takes] if self.recorded else []
        self.speaker, self.text, self.picked = speaker, text, 0
        self.takes = []
        for recording in recordings:
            self.add_take(replace(recording, turn=Turn(speaker, text, str(speaker))))

    def add_take(self, utterance: Utterance, history: tuple[int, ...] = ()) -> None:
        """Adds a take and picks it."""
        number = max((take.number for take in self.takes), default=0) + 1
        # its samples and codes stay; those of rejected takes, and the turns before, do not
        held = replace(utterance, conversation=Conversation(()), takes=())
        self.takes.append(HeldTake(number, held, history))
        self.picked = number


class HeldConversation:
    """A conversation of one client. Changed on the event loop only.

    options: defaults of its turns. seed: of its first turn; each later turn has the next. context: clips before the
    turns, besides those of the speakers' voices.
    """

    def __init__(
        self,
        title: str,
        speakers: Mapping[int, HeldSpeaker],
        context: Sequence[HeldClip] = (),
        options: GenerationOptions | None = None,
    ) -> None:
        self.id = new_id("conv")
        self.title = title
        self.context = tuple(context)
        self.options = options or GenerationOptions()
        self.seed = secrets.randbelow(2**31) if self.options.seed is None else self.options.seed
        self.turns: list[HeldTurn] = []
        self.created = int(time.time())
        self.used = time.monotonic()
        self.job: SpeechJob | None = None  # the turn that is being spoken
        self._owner: object | None = None  # of the right to change it
        self._speakers: dict[int, HeldSpeaker] = {}
        self._context_id = 0
        self.set_speakers(speakers)
        for clip in self.context:
            self.declare(clip.turn.speaker)

    @property
    def speakers(self) -> Mapping[int, HeldSpeaker]:
        return self._speakers

    def set_speakers(self, speakers: Mapping[int, HeldSpeaker]) -> None:
        """Replaces the speakers. Where a voice changed, turns spoken before are outdated.

        Raises:
            InputError: two have the same name.
        """
        names: dict[str, int] = {}
        for number, speaker in speakers.items():
            if (owner := names.setdefault(speaker.name, number)) != number:
                raise InputError(f"speakers.{number}.name: {speaker.name!r} is the name of speaker {owner} too")
        before, after = (
            {number: speaker.clip for number, speaker in each.items() if speaker.clip}
            for each in (self._speakers, speakers)
        )
        if list(before.items()) != list(after.items()):
            self._context_id = next(_take_ids)
        self._speakers = dict(speakers)

    def declare(self, number: int) -> None:
        """Makes sure that there is such a speaker."""
        if number not in self._speakers:
            names = {speaker.name for speaker in self._speakers.values()}
            candidates = (str(number), *(f"speaker {number}{'*' * stars}" for stars in range(len(names))))
            added = HeldSpeaker(next(name for name in candidates if name not in names))
            self._speakers = {**self._speakers, number: added}

    @property
    def clips(self) -> list[HeldClip]:
        """What the model hears before the first turn."""
        return [*(speaker.clip for speaker in self._speakers.values() if speaker.clip), *self.context]

    def uses(self, number: int) -> bool:
        """Whether a speaker has turns or context clips."""
        return number in {*(turn.speaker for turn in self.turns), *(clip.turn.speaker for clip in self.context)}

    @property
    def seconds(self) -> float:
        """Of all audio that is held."""
        takes = (take for turn in self.turns for take in turn.takes)
        return sum(clip.seconds for clip in self.clips) + sum(take.utterance.audio.duration for take in takes)

    def find_turn(self, turn_id: str) -> tuple[int, HeldTurn]:
        """The index of a turn, and the turn. Raises NotFound."""
        for index, turn in enumerate(self.turns):
            if turn.id == turn_id:
                return index, turn
        raise NotFound("turn: the conversation has no such turn")

    def index_of(self, name: str, number: int | None, limit: int) -> int:
        """The index of the place with a number from 1 to `limit`; the last one for None. name: of the field.

        Raises:
            InputError: there is no such place.
        """
        if number is not None and number > limit:
            raise InputError(f"{name}: the conversation has {len(self.turns)} turns")
        return (number or limit) - 1

    def history(self, index: int) -> tuple[int, ...]:
        """What the turn at this index follows: the ids of the voices and of the picked takes before it."""
        return (self._context_id, *(turn.take.id for turn in self.turns[:index] if turn.take))

    def past(self, index: int) -> list[PastTurn]:
        """The turns before this index that were spoken."""
        return [turn.take.past for turn in self.turns[:index] if turn.take]

    def reserve(self, owner: object) -> None:
        """From now on only `owner` changes the turns. Raises Conflict: another does."""
        if self._owner is not None and self._owner is not owner:
            raise Conflict("a turn of this conversation is being spoken; wait until it ends")
        self._owner = owner

    def release(self, owner: object) -> None:
        if self._owner is owner:
            self._owner = self.job = None

    @property
    def is_busy(self) -> bool:
        """Whether a turn is being spoken or added."""
        return self._owner is not None

    def check_space(self, turn: HeldTurn | None = None) -> None:
        """Raises Conflict where neither another turn, nor with `turn` another take of it, can be held."""
        if turn is None and len(self.turns) >= MAX_TURNS:
            raise Conflict(f"a conversation has at most {MAX_TURNS} turns; begin another")
        if turn and len(turn.takes) >= MAX_TAKES:
            raise Conflict(f"a turn has at most {MAX_TAKES} takes; pick one of them")
        if self.seconds > MAX_CONVERSATION_SECONDS:
            raise Conflict(f"a conversation holds at most {MAX_CONVERSATION_SECONDS} s of audio; begin another")

    def record(self, ttl: float) -> dict[str, Any]:
        """The conversation as clients see it."""
        return {
            "id": self.id,
            "object": "conversation",
            "title": self.title,
            "created": self.created,
            "expires_at": int(time.time() + ttl - (time.monotonic() - self.used)),
            "speakers": {str(number): speaker.record() for number, speaker in self._speakers.items()},
            "turns": [self.turn_record(turn) for turn in self.turns],
        }

    def turn_record(self, turn: HeldTurn) -> dict[str, Any]:
        """A turn as clients see it; outdated: something before it changed since its picked take was made."""
        index, take = self.turns.index(turn), turn.take
        return {
            "id": turn.id,
            "object": "conversation.turn",
            "number": index + 1,
            "speaker": turn.speaker,
            "input": turn.text,
            "source": "recorded" if turn.recorded else "synthesized",
            "gap": turn.gap,
            "gain": turn.gain,
            "take": turn.picked or None,
            "takes": [each.record() for each in turn.takes],
            "outdated": bool(take and not turn.recorded and take.history != self.history(index)),
        }


class TurnSpeech(SpeechListener):
    """Speaks a take of a turn in the history before it; turn or take are added when the client has got all of it.

    index: of the turn. options: of this take over the conversation's.

    Raises:
        Conflict: the conversation is busy or full.
    """

    def __init__(
        self,
        context: ServerContext,
        conversation: HeldConversation,
        turn: HeldTurn,
        index: int,
        options: GenerationOptions,
        stream: bool,
    ) -> None:
        self._context, self._conversation, self._turn, self._index = context, conversation, turn, index
        self._is_new = turn not in conversation.turns
        conversation.check_space(None if self._is_new else turn)
        conversation.reserve(self)
        conversation.declare(turn.speaker)
        self._history, self._past = conversation.history(self._index), conversation.past(self._index)
        self._clips, self._policy = conversation.clips, context.policy(stream)
        seeds = [take.seed for take in turn.takes if take.seed is not None]
        order = (
            len(conversation.turns) if self._is_new else index
        )  # also where it is inserted, no turn has its seed yet
        seed = options.seed if options.seed is not None else max(seeds) + 1 if seeds else conversation.seed + order
        merged = options.over(conversation.options)
        self._options = replace(merged, seed=seed % 2**63)

    def prepare(self, synth: Synthesizer) -> ConversationState:
        """The state whose next turn is this one; called on a worker."""
        turn = Turn(self._turn.speaker, self._turn.text, str(self._turn.speaker), options=self._options)
        conversation = Conversation(
            (*(past.turn for past in self._past), turn),
            tuple(clip.turn for clip in self._clips),
            new_id("speech"),
            language=self._context.settings.language,
            normalize=self._context.settings.normalize,
            lexicon=self._context.settings.lexicon,
        )
        # each turn has all its options itself, so that those of turns before it are the ones it was spoken with
        defaults = ResolvedDefaults(GenerationOptions(), synth.checkpoint.defaults, self._policy)
        return resumed_state(synth, conversation, defaults, [clip.tokens for clip in self._clips], self._past)

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-turn-id": self._turn.id}

    def started(self, job: SpeechJob) -> None:
        self._conversation.job = job

    def finished(self, utterance: Utterance) -> Mapping[str, Any]:
        self._turn.add_take(utterance, self._history)
        if self._is_new:
            self._conversation.turns.insert(self._index, self._turn)
        self._conversation.used = time.monotonic()
        return {"turn": self._conversation.turn_record(self._turn)}

    def closed(self) -> None:
        self._conversation.release(self)


class ConversationStore:
    """The conversations that can be found by their ids, which are secrets.

    limit: how many there are at most. ttl: seconds after its last use in which one is dropped. clock: for tests.
    """

    def __init__(self, limit: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.ttl, self._clock = limit, ttl, clock
        self._by_id: dict[str, HeldConversation] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def seconds(self) -> float:
        """Of all audio that is held."""
        return math.fsum(each.seconds for each in list(self._by_id.values()))

    def add(self, conversation: HeldConversation) -> HeldConversation:
        """Raises ServerBusy: there are too many, and all of them were used lately."""
        self.make_space()
        self._by_id[conversation.id] = conversation
        return conversation

    def make_space(self) -> None:
        """Drops conversations that were not used for long, oldest first, until one more fits.

        Raises:
            ServerBusy: the others were used lately.
        """
        self._drop_while(lambda: len(self) >= self.limit or self.seconds > MAX_STORED_SECONDS)

    def make_space_for_audio(self) -> None:
        """The same, until more audio fits."""
        self._drop_while(lambda: self.seconds > MAX_STORED_SECONDS)

    def _drop_while(self, full: Callable[[], bool]) -> None:
        self.drop_expired()
        while full():
            idle = [each for each in self._by_id.values() if not each.is_busy]
            oldest = min(idle, key=lambda each: each.used, default=None)
            wait = MIN_IDLE_SECONDS - (self._clock() - oldest.used) if oldest else MIN_IDLE_SECONDS
            if oldest is None or wait > 0:
                raise ServerBusy(
                    f"the server holds {len(self)} conversations; delete one, or try again later", math.ceil(wait)
                )
            del self._by_id[oldest.id]

    def get(self, conversation_id: str) -> HeldConversation:
        """A conversation, which counts as used. Raises NotFound: none of this id, or no longer."""
        self.drop_expired()
        found = self._by_id.get(conversation_id)
        if found is None:
            raise NotFound("conversation: no such conversation, or it has expired")
        found.used = self._clock()
        return found

    def remove(self, conversation_id: str) -> HeldConversation:
        """Raises NotFound."""
        found = self.get(conversation_id)
        del self._by_id[conversation_id]
        return found

    def drop_expired(self) -> None:
        """Drops those that were not used for the time to live, and are not being spoken."""
        now = self._clock()
        for each in list(self._by_id.values()):
            if not each.is_busy and now - each.used > self.ttl:
                del self._by_id[each.id]
