"""One conversation on its way: options in their order, seeds, and what leaves a full window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import frame_rows, text_rows
from torch import Tensor

from csm_cli.errors import PromptTooLong
from csm_cli.generation.concatenate import SpokenChunk
from csm_cli.generation.context_window import WindowLimits
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.take import Take, TakeSpec
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

BASE = GenerationOptions(temperature=0.9, top_k=50, seed=100)
TAKE = Take(torch.zeros(1, 4), np.zeros(1920, np.float32), "cap", 0, "too long")
WINDOW = WindowLimits(positions=200, frame_rate=12.5)


def conversation(*texts: str, options: GenerationOptions | None = None) -> Conversation:
    return Conversation(tuple(Turn(0, text, options=options or GenerationOptions()) for text in texts))


def opened(talk: Conversation, base: GenerationOptions = BASE, context_rows: int = 0) -> ConversationState:
    heard = (Turn(1, "Heard before."),) if context_rows else ()
    dialogue = ConversationState(
        replace(talk, context=heard, defaults=base), ResolvedDefaults(GenerationOptions(), GenerationOptions()), WINDOW
    )
    dialogue.begin(lambda turn: rows(context_rows))
    return dialogue


def rows(length: int) -> Tensor:
    return text_rows(torch.arange(length), 4)


def spoken(dialogue: ConversationState, heard: Tensor) -> None:
    """The part in hand is spoken, and the turn is over with its last."""
    assert dialogue.hand and dialogue.hand.part
    dialogue.keep(SpokenChunk(dialogue.hand.part, TAKE), heard)
    if dialogue.hand.part is None:
        dialogue.close()


def test_a_turns_options_override_the_scripts() -> None:
    dialogue = opened(conversation("Hi there.", options=GenerationOptions(temperature=0.0, seed=0)))
    sampling = dialogue.request(rows(5)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 50, 0)


def test_the_depth_decoder_follows_the_backbone_unless_told() -> None:
    assert opened(conversation("Hi.")).request(rows(5)).sampling.depth_temperature == 0.9
    own = (
        opened(conversation("Hi.", options=GenerationOptions(depth_temperature=0.0, depth_top_k=1)))
        .request(rows(5))
        .sampling
    )
    assert (own.depth_temperature, own.depth_top_k) == (0.0, 1)


def test_turns_have_seeds_of_their_own() -> None:
    dialogue = opened(conversation("One.", "Two.", "Three."))
    seeds = []
    while dialogue.hand:
        seeds.append(dialogue.request(rows(5)).sampling.seed)
        spoken(dialogue, rows(5))
    assert seeds == [100, 101, 102]


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {
        ConversationState(
            conversation("Hi."),
            ResolvedDefaults(GenerationOptions(), GenerationOptions(temperature=1.0, top_k=5)),
            WINDOW,
        ).seed
        for _ in range(5)
    }
    assert len(seeds) > 1


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.01, 1), (1.0, 12), (8.0, 100)])
def test_a_duration_is_cut_to_whole_frames(seconds: float, frames: int) -> None:
    dialogue = opened(conversation("Hello.", options=GenerationOptions(max_duration=seconds)))
    assert dialogue.request(rows(5)).sampling.max_frames == frames


def test_an_automatic_duration_grows_with_the_text() -> None:
    short, long = (opened(conversation("word " * n)).request(rows(5)).sampling.max_frames for n in (1, 10))
    assert short < long


def test_past_turns_are_the_next_turns_context() -> None:
    dialogue = opened(conversation("One.", "Two."), context_rows=3)
    first = dialogue.request(rows(5))
    assert len(first.rows) == 3 + 5
    heard = torch.cat((rows(5), frame_rows(torch.ones(6, 4, dtype=torch.int64))))
    spoken(dialogue, heard)
    assert torch.equal(dialogue.request(rows(4)).rows, torch.cat((rows(3), heard, rows(4))))


def test_each_take_has_the_next_seed_and_the_next_turn_begins_anew() -> None:
    dialogue = opened(conversation("One.", "Two."))
    seeds = []
    for _ in range(3):
        seeds.append(dialogue.request(rows(5)).sampling.seed)
        assert dialogue.hand
        dialogue.hand.takes.append(TAKE)
    spoken(dialogue, rows(5))
    assert [*seeds, dialogue.next_seed] == [100, 101, 102, 101]


def test_a_take_is_told_whether_its_duration_was_asked_for() -> None:
    briefs = [opened(conversation("Hi.", options=GenerationOptions(max_duration=d))).brief() for d in (None, 0.0, 2.0)]
    assert [brief.capped for brief in briefs] == [False, False, True]
    assert briefs[0] == TakeSpec("Hi.", 100)


def test_the_oldest_turns_leave_a_full_window_at_once_and_context_stays() -> None:
    dialogue = opened(conversation("One.", "Two.", "Three.", "Four."), context_rows=50)
    for heard in (40, 30, 60):
        spoken(dialogue, rows(heard))
    request = dialogue.request(rows(60))
    assert dialogue.hand
    assert len(request.rows) == 50 + 60 + 60
    assert dialogue.hand.evicted == [1, 2]
    dialogue.request(rows(60))
    assert dialogue.hand.evicted == [1, 2]


def test_a_turn_that_is_kept_makes_others_leave_as_it_did_when_it_was_spoken() -> None:
    talk = Conversation(
        (Turn(0, "One."), Turn(0, "Two.", options=GenerationOptions(max_duration=12.0)), Turn(0, "Three."))
    )
    fresh = opened(talk)
    spoken(fresh, rows(60))
    fresh.request(rows(10))
    spoken(fresh, rows(10))
    kept = Recording(Path("kept.wav"), codes_path=Path("kept.npy"))
    again = opened(replace(talk, turns=(*(replace(turn, recording=kept) for turn in talk.turns[:2]), talk.turns[2])))
    again.skip([("One.", rows(60))])
    again.skip([("Two.", rows(10))])
    assert len(again.request(rows(10)).rows) == len(fresh.request(rows(10)).rows) == 20


LONG = "The first sentence is short. The second one is a little longer. The third."


def split_up(
    *texts: str, most: int = 30, base: GenerationOptions = BASE, lexicon: dict[str, str] | None = None
) -> ConversationState:
    talk = replace(conversation(*texts), lexicon=lexicon or {})
    return ConversationState(
        talk, ResolvedDefaults(base, GenerationOptions(), RetryPolicy(trim=True, chunk_chars=most)), WINDOW
    )


def test_a_long_turn_is_spoken_in_parts_each_heard_by_the_next() -> None:
    dialogue = split_up(LONG, "And so on.")
    told: list[tuple[str, int, int]] = []
    while dialogue.hand:
        brief, request = dialogue.brief(), dialogue.request(rows(4))
        told.append((brief.text, brief.chunk_number, len(request.rows)))
        assert brief.seed == request.sampling.seed
        spoken(dialogue, rows(10))
    assert told == [
        ("The first sentence is short.", 1, 4),
        ("The second one is a little longer.", 2, 14),
        ("The third.", 3, 24),
        ("And so on.", 1, 34),
    ]


def test_takes_of_parts_have_seeds_that_go_on() -> None:
    dialogue = split_up(LONG)
    seeds = []
    for takes in (2, 1, 1):
        for _ in range(takes):
            assert dialogue.hand
            seeds.append(dialogue.next_seed)
            dialogue.hand.takes.append(TAKE)
        spoken(dialogue, rows(10))
    assert seeds == [100, 101, 102, 103]


@pytest.mark.parametrize("base", [replace(BASE, max_duration=5.0), BASE])
def test_a_turn_is_whole_where_its_duration_was_named_or_nothing_is_split(base: GenerationOptions) -> None:
    dialogue = split_up(LONG, base=base, most=30 if base.max_duration else 0)
    assert dialogue.hand and dialogue.hand.parts == (LONG,)


def test_the_parts_of_a_turn_leave_the_window_together() -> None:
    dialogue = split_up(LONG, "And so on.")
    for _ in range(3):
        spoken(dialogue, rows(60))
    assert len(dialogue.request(rows(20)).rows) == 20
    assert dialogue.hand and dialogue.hand.evicted == [1]


def test_a_turn_too_long_for_the_window_forgets_its_own_first_parts_last() -> None:
    dialogue = split_up("Before.", LONG)
    lengths = []
    while dialogue.hand:
        hand = dialogue.hand
        lengths.append(len(dialogue.request(rows(20)).rows))
        spoken(dialogue, rows(90))
    assert lengths == [20, 110, 110, 110]
    assert hand.evicted == [1, 2]


def test_words_are_respelled_for_speech_only() -> None:
    dialogue = split_up("Ask Nguyen.", lexicon={"nguyen": "win"})
    assert dialogue.words == dialogue.brief().text == "Ask win."
    assert dialogue.hand and dialogue.hand.part == dialogue.hand.turn.text == "Ask Nguyen."


def heard_at(characters: int, frames: int) -> ConversationState:
    """A dialogue whose speaker 0 said so many characters in so many frames."""
    context = (Turn(0, "x" * characters),)
    dialogue = ConversationState(
        replace(conversation("x" * 100), context=context), ResolvedDefaults(BASE, GenerationOptions()), WINDOW
    )
    said = torch.cat((rows(2), frame_rows(torch.ones(frames, 4, dtype=torch.int64))))
    dialogue.begin(lambda turn: said)
    return dialogue


@pytest.mark.parametrize(
    ("characters", "frames", "seconds"),
    [
        (40, 25, 3 + 100 / 10),  # 20 characters a second; a turn may be half as fast
        (16, 25, 200),  # 8: more than the window has left
        (1000, 25, 3 + 100 / 12),  # as fast as nobody speaks: bounded
        (40, 10, 3 + 100 / 5),  # too little to tell
    ],
)
def test_an_automatic_duration_goes_by_the_speakers_own_rate(characters: int, frames: int, seconds: float) -> None:
    sampling = heard_at(characters, frames).request(rows(5)).sampling
    left = 200 - (2 + frames + 1) - 5
    assert sampling.max_frames == min(int(seconds * 12.5 + 1e-6), left)


def test_the_best_take_is_as_long_as_its_speaker_takes() -> None:
    dialogue = heard_at(20, 25)  # so 100 characters take 125 frames
    assert dialogue.hand
    dialogue.hand.takes += [replace(TAKE, codes=torch.zeros(count, 4), stop="eos", fault="") for count in (50, 120, 60)]
    assert len(dialogue.best().codes) == 120


def test_a_speaker_who_was_never_heard_is_warned_about_once() -> None:
    turns = (Turn(1, "Known."), Turn(2, "New."), Turn(2, "Again."))
    context = (Turn(1, "Before."),)
    dialogue = ConversationState(Conversation(turns, context), ResolvedDefaults(BASE, GenerationOptions()), WINDOW)
    dialogue.begin(lambda turn: rows(5))
    warned = []
    while dialogue.hand:
        dialogue.request(rows(5))
        warned.append(dialogue.hand.warnings)
        spoken(dialogue, rows(5))
    assert [len(each) for each in warned] == [0, 1, 0]
    assert warned[1][0].startswith(
        "speaker 2 is not among those heard before (1) and gets a voice of the model's choice"
    )


def test_without_context_or_after_having_spoken_nobody_is_warned_about() -> None:
    dialogue = ConversationState(
        Conversation((Turn(0, "One."), Turn(1, "Two."), Turn(0, "Three."))),
        ResolvedDefaults(BASE, GenerationOptions()),
        WINDOW,
    )
    dialogue.request(rows(5))
    assert dialogue.hand and not dialogue.hand.warnings
    spoken(dialogue, rows(5))
    dialogue.skip([("Two.", rows(5))])  # a recording of speaker 1
    dialogue.request(rows(5))
    assert dialogue.hand and not dialogue.hand.warnings


def test_what_cannot_fit_says_by_how_much() -> None:
    dialogue = opened(conversation("Hello.", options=GenerationOptions(max_duration=8.0)), context_rows=90)
    with pytest.raises(PromptTooLong, match=r'turn 1 \("Hello."\) is 10 positions \(0.8 s\) too long'):
        dialogue.request(rows(20))  # 90 + 20 + 100 frames in a window of 200
