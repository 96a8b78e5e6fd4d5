"""Takes of a voice for measuring: fixed seeds, the checkpoint's own sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from csm_cli.generation.events import ConversationFailed, Utterance
from csm_cli.recipe.sounds import Samples
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

if TYPE_CHECKING:
    from pathlib import Path

    from csm_cli.generation.synthesizer import Synthesizer

_SEED = 1000


@dataclass(frozen=True, eq=False)
class BenchTake:
    """What came out of one conversation; `ended`: by end of speech; seconds: what it took to compute."""

    samples: Samples
    ended: bool
    seconds: float


def speak_alone(texts: Sequence[str]) -> list[Conversation]:
    """Each text by speaker 0, without context."""
    return [Conversation((_turn(0, text, index),)) for index, text in enumerate(texts)]


def speak_in_context(context: Path, said: str, text: str, index: int) -> Conversation:
    """`text` by a speaker who has `said` something before, in a recording."""
    speaker = index % 3
    return Conversation((_turn(speaker, text, index),), (Turn(speaker, said, recording=Recording(context)),))


def speak(
    synth: Synthesizer, conversations: Sequence[Conversation], retry_policy: RetryPolicy | None = None
) -> list[BenchTake]:
    """A take of each conversation, as the model makes it unless some `retry_policy` is taken.

    Raises:
        CsmError: one of them cannot be spoken.
    """
    said: dict[int, list[Utterance]] = {id(each): [] for each in conversations}
    for event in synth.speak(conversations, GenerationOptions(), retry_policy):
        if isinstance(event, ConversationFailed):
            raise event.error
        if isinstance(event, Utterance):
            said[id(event.conversation)].append(event)
    return [_take(said[id(each)]) for each in conversations]


def _turn(speaker: int, text: str, index: int) -> Turn:
    return Turn(speaker, text, options=GenerationOptions(seed=_SEED + index))


def _take(utterances: Sequence[Utterance]) -> BenchTake:
    return BenchTake(
        samples=np.concatenate([each.audio.samples for each in utterances]),
        ended=all(each.stop == "eos" for each in utterances),
        seconds=sum(each.seconds for each in utterances),
    )
