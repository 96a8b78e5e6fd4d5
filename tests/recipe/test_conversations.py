"""Conversations as training sequences: layout, labels, guides, batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from csm_cli.recipe.conversations import ConversationMixer, CorpusTake, CorpusTurn, conversation_row, join_takes
from csm_cli.recipe.corpus import CorpusUtterance
from csm_cli.recipe.plan import StagePlan
from csm_cli.recipe.tokenizer import text_ids
from csm_cli.train.batches import IGNORE, collate


def take(text: str = "Hi there.", frames: int = 6, voice: int = 0, seed: int = 0) -> CorpusTake:
    codes = np.random.default_rng(seed).integers(1, 512, (frames, 4)).astype(np.int16)
    return CorpusTake(CorpusUtterance(text, voice, frames, ((0, 0.0), (3, 2.5))), codes)


def test_a_turn_is_text_frames_and_one_frame_of_zeros() -> None:
    spoken = take()
    row = conversation_row([CorpusTurn(1, spoken, learned=True)])
    ids = text_ids(1, "Hi there.")
    assert row.text[: len(ids)].tolist() == ids
    assert row.is_text.tolist() == [True] * len(ids) + [False] * 7
    assert (row.codes[len(ids) : -1] == spoken.codes).all() and not row.codes[-1].any()
    assert (row.labels[: len(ids)] == IGNORE).all() and (row.labels[len(ids) :] == row.codes[len(ids) :]).all()


def test_a_context_turn_is_heard_but_not_learned() -> None:
    first, second = CorpusTurn(0, take(), learned=False), CorpusTurn(0, take(seed=1), learned=True)
    row = conversation_row([first, second])
    half = len(row) // 2
    assert row.codes[:half].any() and (row.labels[:half] == IGNORE).all() and (row.guide[:half] == -1).all()
    assert (row.voices[:half] == IGNORE).all()
    assert (row.labels[half:] != IGNORE).any()


def test_the_guide_walks_through_the_text_from_word_to_word() -> None:
    ids = text_ids(0, "Hi there.")
    guide = conversation_row([CorpusTurn(0, take(), learned=True)]).guide
    walk = guide[len(ids) - 1 : -1]
    assert (guide[: len(ids) - 1] == -1).all() and guide[-1] == -1
    assert (np.diff(walk) >= 0).all()
    assert walk[0] >= ids.index(ord("H")) and walk[-1] <= len(ids) - 1
    assert walk[2] == pytest.approx(ids.index(ord("t")), abs=0.01)  # frame 2's middle is where "there" starts


def test_padding_is_neither_text_nor_learned() -> None:
    rows = [conversation_row([CorpusTurn(0, take(frames=frames), learned=True)]) for frames in (3, 6)]
    batch = collate(rows)
    assert batch.labels.shape == (2, len(rows[1]), 4)
    assert (batch.labels[0, len(rows[0]) :] == IGNORE).all()
    assert (batch.guide[0, len(rows[0]) :] == -1).all()


def test_batches_stay_within_the_tokens_and_repeat_with_the_seed() -> None:
    takes = [take("A word or two.", frames, voice, seed=frames) for frames in range(3, 12) for voice in range(4)]

    def draw(seed: int) -> list[list[int]]:
        batches = ConversationMixer(takes, seed, tokens=200).batches(
            StagePlan("mixed", 1, max_frames=10, dialogues=0.5, voices=3, paragraphs=0.1)
        )
        return [batch.text.flatten().tolist() for batch in itertools.islice(batches, 20)]

    assert draw(1) == draw(1) != draw(2)
    assert max(map(len, draw(1))) <= 200


def test_every_dialogue_has_something_to_learn() -> None:
    takes = [take(frames=frames, voice=voice) for frames in (3, 4) for voice in range(4)]
    batches = ConversationMixer(takes, 0, tokens=1).batches(
        StagePlan("talk", 1, max_frames=10, dialogues=1.0, voices=4)
    )
    assert all((batch.labels != IGNORE).any() for batch in itertools.islice(batches, 40))


def test_joined_takes_are_one_paragraph() -> None:
    paragraph = join_takes([take(frames=6), take("Not so.", frames=4)])
    assert paragraph.utterance.text == "Hi there. Not so."
    assert paragraph.utterance.frames == len(paragraph.codes) == 10
    assert paragraph.utterance.words == ((0, 0.0), (3, 2.5), (10, 6.0), (13, 8.5))
