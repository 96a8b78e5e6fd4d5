"""One conversation on its way: options in their order, seeds, and what leaves a full window."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import frame_rows, text_rows
from torch import Tensor

from csm_cli.dialogue import Dialogue, Given, Window
from csm_cli.errors import PromptTooLong
from csm_cli.takes import Brief, Take
from csm_cli.types import Conversation, Options, Turn

BASE = Options(temperature=0.9, top_k=50, seed=100)
TAKE = Take(torch.zeros(1, 4), np.zeros(1920, np.float32), "cap", 0, "too long")
WINDOW = Window(positions=200, frame_rate=12.5)


def conversation(*texts: str, options: Options | None = None) -> Conversation:
    return Conversation(tuple(Turn(0, text, options=options or Options()) for text in texts))


def opened(talk: Conversation, base: Options = BASE, context_rows: int = 0) -> Dialogue:
    heard = (Turn(1, "Heard before."),) if context_rows else ()
    dialogue = Dialogue(replace(talk, context=heard), Given(base, Options()), WINDOW)
    dialogue.begin(lambda turn: rows(context_rows))
    return dialogue


def rows(length: int) -> Tensor:
    return text_rows(torch.arange(length), 4)


def test_a_turns_options_count_above_the_rest() -> None:
    dialogue = opened(conversation("Hi there.", options=Options(temperature=0.0, seed=0)))
    sampling = dialogue.request(rows(5)).sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.0, 50, 0)


def test_the_depth_decoder_follows_the_backbone_unless_told() -> None:
    assert opened(conversation("Hi.")).request(rows(5)).sampling.depth_temperature == 0.9
    own = opened(conversation("Hi.", options=Options(depth_temperature=0.0, depth_top_k=1))).request(rows(5)).sampling
    assert (own.depth_temperature, own.depth_top_k) == (0.0, 1)


def test_turns_have_seeds_of_their_own() -> None:
    dialogue = opened(conversation("One.", "Two.", "Three."))
    seeds = []
    while dialogue.turn:
        seeds.append(dialogue.request(rows(5)).sampling.seed)
        dialogue.hear(rows(5))
    assert seeds == [100, 101, 102]


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {
        Dialogue(conversation("Hi."), Given(Options(), Options(temperature=1.0, top_k=5)), WINDOW).seed
        for _ in range(5)
    }
    assert len(seeds) > 1


@pytest.mark.parametrize(("seconds", "frames"), [(0.08, 1), (0.01, 1), (1.0, 12), (8.0, 100)])
def test_a_duration_is_cut_to_whole_frames(seconds: float, frames: int) -> None:
    dialogue = opened(conversation("Hello.", options=Options(max_duration=seconds)))
    assert dialogue.request(rows(5)).sampling.max_frames == frames


def test_an_automatic_duration_grows_with_the_text() -> None:
    short, long = (opened(conversation("word " * n)).request(rows(5)).sampling.max_frames for n in (1, 10))
    assert short < long


def test_past_turns_are_the_next_turns_context() -> None:
    dialogue = opened(conversation("One.", "Two."), context_rows=3)
    first = dialogue.request(rows(5))
    assert len(first.rows) == 3 + 5
    heard = torch.cat((rows(5), frame_rows(torch.ones(6, 4, dtype=torch.int64))))
    dialogue.hear(heard)
    assert torch.equal(dialogue.request(rows(4)).rows, torch.cat((rows(3), heard, rows(4))))


def test_each_take_has_the_next_seed_and_the_next_turn_begins_anew() -> None:
    dialogue = opened(conversation("One.", "Two."))
    seeds = []
    for _ in range(3):
        seeds.append(dialogue.request(rows(5)).sampling.seed)
        dialogue.takes.append(TAKE)
    dialogue.hear(rows(5))
    assert [*seeds, dialogue.turn_seed] == [100, 101, 102, 101]


def test_a_take_is_told_whether_its_duration_was_asked_for() -> None:
    briefs = [opened(conversation("Hi.", options=Options(max_duration=d))).brief(True) for d in (None, 0.0, 2.0)]
    assert [brief.capped for brief in briefs] == [False, False, True]
    assert briefs[0] == Brief("Hi.", 100, watched=True)


def test_the_oldest_turn_leaves_a_full_window_and_context_stays(caplog: pytest.LogCaptureFixture) -> None:
    dialogue = opened(conversation("One.", "Two.", "Three."), context_rows=50)
    dialogue.hear(rows(80))
    dialogue.hear(rows(60))
    with caplog.at_level(logging.WARNING):
        request = dialogue.request(rows(20))
    assert len(request.rows) == 50 + 60 + 20
    assert "forgotten" in caplog.text


def test_what_cannot_fit_says_by_how_much() -> None:
    dialogue = opened(conversation("Hello.", options=Options(max_duration=8.0)), context_rows=90)
    with pytest.raises(PromptTooLong, match=r'turn 1 \("Hello."\) is 10 positions \(0.8 s\) too long'):
        dialogue.request(rows(20))  # 90 + 20 + 100 frames in a window of 200
