"""Turns that are finished already, and the state of a conversation that goes on after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm_cli.generation.chunking import spell
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.types import Conversation, Turn


@dataclass(frozen=True, eq=False)
class PastTurn:
    """A finished turn. codes: int64 [T, K].

    chunks: the text of each chunk as written, and its frames. recorded: its speech was not generated.
    """

    turn: Turn
    codes: Tensor
    chunks: tuple[tuple[str, int], ...]
    recorded: bool = False

    @classmethod
    def of(cls, utterance: Utterance) -> PastTurn:
        """The turn of an utterance."""
        chunks = tuple((segment.text, segment.frames) for segment in utterance.segments)
        whole = ((utterance.turn.text, len(utterance.codes)),)
        return cls(utterance.turn, torch.as_tensor(utterance.codes), chunks or whole, utterance.stop == "recorded")


def resumed_state(
    synth: Synthesizer,
    conversation: Conversation,
    defaults: ResolvedDefaults,
    context: Sequence[Tensor] = (),
    past: Sequence[PastTurn] = (),
) -> ConversationState:
    """The state of a conversation whose first turns are those of `past`, as if they had just been generated.

    context: prompt tokens [S, K + 1] of its context turns. What the KV cache still holds of it is not prefilled again.
    """
    state = synth.new_state(conversation, defaults)
    tokens = iter(context)
    state.add_context(lambda turn: next(tokens))

    def segments(each: PastTurn) -> Iterator[tuple[str, Tensor]]:
        first = 0
        for text, frames in each.chunks:
            spelled = text if each.recorded else spell(text, conversation)
            codes = each.codes[first : first + frames]
            yield spelled, synth.prompt_builder.turn_tokens(each.turn.speaker, spelled, codes)
            first += frames

    for each in past:
        state.add_recorded(segments(each), generated=not each.recorded)
    return state
