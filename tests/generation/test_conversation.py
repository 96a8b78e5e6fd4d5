"""The state of one conversation: option precedence, seeds, chunks, and eviction from a full window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import frame_rows, text_rows
from torch import Tensor

from csm_cli.errors import PromptTooLong
from csm_cli.generation.context_window import WindowLimits
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.take import Take, TakeSpec
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

UNSET = GenerationOptions()
DEFAULTS = GenerationOptions(temperature=0.9, top_k=50, seed=100)  # of the script
TAKE = Take(torch.zeros(1, 4), np.zeros(1920, np.float32), "cap", 0, "too long")
LIMITS = WindowLimits(positions=200, frame_rate=12.5)


def conversation(*texts: str, options: GenerationOptions = UNSET) -> Conversation:
    return Conversation(tuple(Turn(0, text, options=options) for text in texts), defaults=DEFAULTS)


def start(
    script: Conversation,
    context_positions: int = 0,
    policy: RetryPolicy | None = None,
    checkpoint: GenerationOptions = UNSET,
) -> ConversationState:
    """The state at the first turn; with `context_positions`, after a context turn of speaker 1."""
    if context_positions:
        script = replace(script, context=(Turn(1, "Heard before."),))
    state = ConversationState(script, ResolvedDefaults(UNSET, checkpoint, policy or RetryPolicy()), LIMITS)
    state.add_context(lambda turn: tokens(context_positions))
    return state


def tokens(length: int) -> Tensor:
    return text_rows(torch.arange(length), 4)


def finish_chunk(state: ConversationState, turn_tokens: Tensor) -> None:
    """Finishes the current chunk, and the turn after its last chunk."""
    state.accept_take(TAKE, turn_tokens)
    if state.require_current().chunk is None:
        state.finish_turn()


def test_a_turns_options_override_the_scripts() -> None:
    state = start(conversation("Hi there.", options=GenerationOptions(temperature=0.0, seed=0)))
    sampling = state.request(tokens(5)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 50, 0)


def test_the_depth_decoder_follows_the_backbone_unless_set() -> None:
    assert start(conversation("Hi.")).request(tokens(5)).sampling.depth_temperature == 0.9
    options = GenerationOptions(depth_temperature=0.0, depth_top_k=1)
    sampling = start(conversation("Hi.", options=options)).request(tokens(5)).sampling
    assert (sampling.depth_temperature, sampling.depth_top_k) == (0.0, 1)


def test_each_turn_has_its_own_seed() -> None:
    state = start(conversation("One.", "Two.", "Three."))
    seeds = []
    while state.current:
        seeds.append(state.request(tokens(5)).sampling.seed)
        finish_chunk(state, tokens(5))
    assert seeds == [100, 101, 102]


def test_without_a_seed_one_is_drawn() -> None:
    script = replace(conversation("Hi."), defaults=UNSET)
    checkpoint = GenerationOptions(temperature=1.0, top_k=5)
    assert len({start(script, checkpoint=checkpoint).seed for _ in range(5)}) > 1


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.01, 1), (1.0, 12), (8.0, 100)])
def test_a_maximum_duration_is_whole_frames(seconds: float, frames: int) -> None:
    state = start(conversation("Hello.", options=GenerationOptions(max_duration=seconds)))
    assert state.request(tokens(5)).sampling.max_frames == frames


def test_an_automatic_maximum_duration_grows_with_the_text() -> None:
    short, long = (start(conversation("word " * n)).request(tokens(5)).sampling.max_frames for n in (1, 10))
    assert short < long


def test_past_turns_are_in_the_next_turns_prompt() -> None:
    state = start(conversation("One.", "Two."), context_positions=3)
    first = state.request(tokens(5))
    assert len(first.prompt) == 3 + 5
    turn = torch.cat((tokens(5), frame_rows(torch.ones(6, 4, dtype=torch.int64))))
    finish_chunk(state, turn)
    assert torch.equal(state.request(tokens(4)).prompt, torch.cat((tokens(3), turn, tokens(4))))


def test_each_take_has_the_next_seed_and_the_next_turn_starts_with_its_own() -> None:
    state = start(conversation("One.", "Two."))
    seeds = []
    for _ in range(3):
        seeds.append(state.request(tokens(5)).sampling.seed)
        state.require_current().add_take(TAKE)
    finish_chunk(state, tokens(5))
    assert [*seeds, state.next_seed] == [100, 101, 102, 101]


def test_a_spec_is_capped_if_the_maximum_duration_was_set() -> None:
    durations = (None, 0.0, 2.0)
    specs = [start(conversation("Hi.", options=GenerationOptions(max_duration=d))).take_spec() for d in durations]
    assert [spec.capped for spec in specs] == [False, False, True]
    assert specs[0] == TakeSpec("Hi.", 100)


def test_the_oldest_turns_are_evicted_together_and_context_stays() -> None:
    state = start(conversation("One.", "Two.", "Three.", "Four."), context_positions=50)
    for length in (40, 30, 60):
        finish_chunk(state, tokens(length))
    request = state.request(tokens(60))
    assert len(request.prompt) == 50 + 60 + 60
    assert state.require_current().evicted == [1, 2]
    state.request(tokens(60))
    assert state.require_current().evicted == [1, 2]


def test_a_cached_turn_evicts_the_same_turns_as_when_generated() -> None:
    script = conversation("One.", "Two.", "Three.")
    one, two, three = script.turns
    script = replace(script, turns=(one, replace(two, options=GenerationOptions(max_duration=12.0)), three))
    generated = start(script)
    finish_chunk(generated, tokens(60))
    generated.request(tokens(10))
    finish_chunk(generated, tokens(10))
    recording = Recording(Path("cached.wav"), codes_path=Path("cached.npy"))
    cached = start(
        replace(script, turns=(*(replace(turn, recording=recording) for turn in script.turns[:2]), script.turns[2]))
    )
    cached.add_recorded([("One.", tokens(60))])
    cached.add_recorded([("Two.", tokens(10))])
    assert len(cached.request(tokens(10)).prompt) == len(generated.request(tokens(10)).prompt) == 20


LONG = "The first sentence is short. The second one is a little longer. The third."


def start_chunked(*texts: str, chunk_chars: int = 30, options: GenerationOptions = UNSET) -> ConversationState:
    return start(conversation(*texts, options=options), policy=RetryPolicy(trim=True, chunk_chars=chunk_chars))


def test_a_long_turn_is_generated_in_chunks_that_follow_one_another() -> None:
    state = start_chunked(LONG, "And so on.")
    prompts: list[tuple[str, int, int]] = []
    while state.current:
        spec, request = state.take_spec(), state.request(tokens(4))
        prompts.append((spec.text, spec.chunk_number, len(request.prompt)))
        assert spec.seed == request.sampling.seed
        finish_chunk(state, tokens(10))
    assert prompts == [
        ("The first sentence is short.", 1, 4),
        ("The second one is a little longer.", 2, 14),
        ("The third.", 3, 24),
        ("And so on.", 1, 34),
    ]


def test_takes_of_all_chunks_have_consecutive_seeds() -> None:
    state = start_chunked(LONG)
    seeds = []
    for takes in (2, 1, 1):
        for _ in range(takes):
            seeds.append(state.next_seed)
            state.require_current().add_take(TAKE)
        finish_chunk(state, tokens(10))
    assert seeds == [100, 101, 102, 103]


@pytest.mark.parametrize(("options", "chunk_chars"), [(GenerationOptions(max_duration=5.0), 30), (UNSET, 0)])
def test_a_turn_with_a_maximum_duration_or_chunk_chars_0_is_not_split(
    options: GenerationOptions, chunk_chars: int
) -> None:
    assert start_chunked(LONG, options=options, chunk_chars=chunk_chars).require_current().chunks == (LONG,)


def test_the_segments_of_a_turn_are_evicted_together() -> None:
    state = start_chunked(LONG, "And so on.")
    for _ in range(3):
        finish_chunk(state, tokens(60))
    assert len(state.request(tokens(20)).prompt) == 20
    assert state.require_current().evicted == [1]


def test_a_turn_too_long_for_the_window_evicts_its_own_segments_last() -> None:
    state = start_chunked("Before.", LONG)
    lengths = []
    while state.current:
        current = state.current
        lengths.append(len(state.request(tokens(20)).prompt))
        finish_chunk(state, tokens(90))
    assert lengths == [20, 110, 110, 110]
    assert current.evicted == [1, 2]


def test_the_lexicon_changes_only_generated_text() -> None:
    state = start(replace(conversation("Ask Nguyen."), lexicon={"nguyen": "win"}))
    assert state.chunk_text == state.take_spec().text == "Ask win."
    assert state.require_current().chunk == state.require_current().turn.text == "Ask Nguyen."


def start_after(characters: int, frames: int) -> ConversationState:
    """The state after a context turn of speaker 0 with so many characters in so many frames."""
    state = ConversationState(
        replace(conversation("x" * 100), context=(Turn(0, "x" * characters),)), ResolvedDefaults(UNSET, UNSET), LIMITS
    )
    turn = torch.cat((tokens(2), frame_rows(torch.ones(frames, 4, dtype=torch.int64))))
    state.add_context(lambda _: turn)
    return state


@pytest.mark.parametrize(
    ("characters", "frames", "seconds"),
    [
        (40, 25, 3 + 100 / 10),  # 20 characters a second; a turn may be half as fast
        (16, 25, 200),  # 8: more than the window has space for
        (1000, 25, 3 + 100 / 12),  # faster than anyone speaks: bounded
        (40, 10, 3 + 100 / 5),  # not enough speech to measure
    ],
)
def test_an_automatic_maximum_duration_follows_the_speaking_rate(characters: int, frames: int, seconds: float) -> None:
    sampling = start_after(characters, frames).request(tokens(5)).sampling
    free = 200 - (2 + frames + 1) - 5
    assert sampling.max_frames == min(int(seconds * 12.5 + 1e-6), free)


def test_the_best_take_has_the_length_that_the_speaking_rate_predicts() -> None:
    state = start_after(20, 25)  # 100 characters take 125 frames
    for frames in (50, 120, 60):
        state.require_current().add_take(replace(TAKE, codes=torch.zeros(frames, 4), stop="eos", fault=""))
    assert len(state.best_take().codes) == 120


def test_a_speaker_without_reference_audio_is_warned_about_once() -> None:
    turns = (Turn(1, "Known."), Turn(2, "New."), Turn(2, "Again."))
    state = start(Conversation(turns), context_positions=5)
    warnings = []
    while state.current:
        state.request(tokens(5))
        warnings.append(state.current.warnings)
        finish_chunk(state, tokens(5))
    assert [len(each) for each in warnings] == [0, 1, 0]
    assert warnings[1][0].startswith("speaker 2 has no reference audio (only speaker 1 has)")


def test_no_warning_without_context_or_for_a_speaker_in_the_context() -> None:
    state = start(Conversation((Turn(0, "One."), Turn(1, "Two."), Turn(0, "Three."))))
    state.request(tokens(5))
    assert not state.require_current().warnings
    finish_chunk(state, tokens(5))
    state.add_recorded([("Two.", tokens(5))])
    state.request(tokens(5))
    assert not state.require_current().warnings


def test_a_prompt_that_does_not_fit_is_an_error_with_the_excess() -> None:
    state = start(conversation("Hello.", options=GenerationOptions(max_duration=8.0)), context_positions=90)
    with pytest.raises(PromptTooLong, match=r'turn 1 \("Hello."\) is 10 positions \(0.8 s\) too long'):
        state.request(tokens(20))  # 90 + 20 + 100 frames in a window of 200
