"""Turns that are finished already, and the state of a conversation that goes on after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from csm_cli.generation.chunking import spell
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.events import Utterance
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.types import Conversation, Turn


@dataclass(frozen=True, eq=False)
class PastTurn:
    """A finished turn. codes: int64 [T, K].

    chunks: the text of each chunk as written, and its frames. recorded: its speech was not generated. Its prompt tokens
    are cached, since a conversation prompts them again for each later turn.
    """

    turn: Turn
    codes: Tensor
    chunks: tuple[tuple[str, int], ...]
    recorded: bool = False
    _tokens: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)  # of the chunks, by their spelled texts

    @classmethod
    def of(cls, utterance: Utterance) -> PastTurn:
        """The turn of an utterance."""
        chunks = tuple((segment.text, segment.frames) for segment in utterance.segments)
        whole = ((utterance.turn.text, len(utterance.codes)),)
        return cls(utterance.turn, torch.as_tensor(utterance.codes), chunks or whole, utterance.stop == "recorded")

    def segments(self, conversation: Conversation, prompt_builder: PromptBuilder) -> list[tuple[str, Tensor]]:
        """The text of each chunk as the model reads it in a conversation, and its prompt tokens [S, K + 1]."""
        spelled = [text if self.recorded else spell(text, conversation) for text, _ in self.chunks]
        key = "\0".join(spelled)
        if key not in self._tokens:
            ends = accumulate(frames for _, frames in self.chunks)
            spans = [(end - frames, end) for end, (_, frames) in zip(ends, self.chunks, strict=True)]
            self._tokens[key] = [
                prompt_builder.turn_tokens(self.turn.speaker, text, self.codes[start:end])
                for text, (start, end) in zip(spelled, spans, strict=True)
            ]
        return list(zip(spelled, self._tokens[key], strict=True))


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
    for each in past:
        segments = each.segments(conversation, synth.prompt_builder)
        state.add_recorded(segments, generated=not each.recorded)
    return state
