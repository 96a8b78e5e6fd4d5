"""Conversations as training sequences: layout, labels, guides, batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from csm_cli.recipe.codes import (
    GUIDE,
    VOICE,
    CodedUtterance,
    ConversationMixer,
    CorpusTurn,
    conversation_row,
    join_utterances,
    text_ids,
)
from csm_cli.recipe.corpus import CorpusUtterance
from csm_cli.recipe.plan import StagePlan
from csm_cli.train.batches import IGNORE, collate


def spoken(text: str = "Hi there.", frames: int = 6, voice: int = 0, seed: int = 0) -> CodedUtterance:
    codes = np.random.default_rng(seed).integers(1, 512, (frames, 4)).astype(np.int16)
    return CodedUtterance(CorpusUtterance(text, voice, frames, ((0, 0.0), (3, 2.5))), codes)


def test_turn_is_text_frames_and_an_end_frame() -> None:
    utterance = spoken()
    row = conversation_row([CorpusTurn(1, utterance, trained=True)])
    ids = text_ids(1, "Hi there.")
    assert row.text_ids[: len(ids)].tolist() == ids
    assert row.is_text.tolist() == [True] * len(ids) + [False] * 7
    assert (row.codes[len(ids) : -1] == utterance.codes).all() and not row.codes[-1].any()
    assert (row.labels[: len(ids)] == IGNORE).all() and (row.labels[len(ids) :] == row.codes[len(ids) :]).all()


def test_context_turn_has_no_targets() -> None:
    first, second = CorpusTurn(0, spoken(), trained=False), CorpusTurn(0, spoken(seed=1), trained=True)
    row = conversation_row([first, second])
    half = len(row) // 2
    assert row.codes[:half].any() and (row.labels[:half] == IGNORE).all()
    assert all((row.aux_targets[name][:half] == IGNORE).all() for name in (GUIDE, VOICE))
    assert (row.labels[half:] != IGNORE).any()


def test_guide_follows_the_word_starts() -> None:
    ids = text_ids(0, "Hi there.")
    guide = conversation_row([CorpusTurn(0, spoken(), trained=True)]).aux_targets[GUIDE]
    walk = guide[len(ids) - 1 : -1]
    assert (guide[: len(ids) - 1] == IGNORE).all() and guide[-1] == IGNORE
    assert (np.diff(walk) >= 0).all()
    assert walk[0] >= ids.index(ord("H")) and walk[-1] <= len(ids) - 1
    assert walk[2] == pytest.approx(ids.index(ord("t")), abs=0.01)  # frame 2's middle is where "there" starts


def test_padding_is_neither_text_nor_target() -> None:
    rows = [conversation_row([CorpusTurn(0, spoken(frames=frames), trained=True)]) for frames in (3, 6)]
    batch = collate(rows)
    assert batch.labels.shape == (2, len(rows[1]), 4)
    assert (batch.labels[0, len(rows[0]) :] == IGNORE).all()
    assert (batch.aux_targets[GUIDE][0, len(rows[0]) :] == IGNORE).all()


def test_batches_respect_the_token_limit_and_the_seed() -> None:
    utterances = [spoken("A word or two.", frames, voice, seed=frames) for frames in range(3, 12) for voice in range(4)]

    def draw(seed: int) -> list[list[int]]:
        batches = ConversationMixer(utterances, seed, tokens=200).batches(
            StagePlan("mixed", 1, max_frames=10, dialogues=0.5, voices=3, paragraphs=0.1)
        )
        return [batch.text_ids.flatten().tolist() for batch in itertools.islice(batches, 20)]

    assert draw(1) == draw(1) != draw(2)
    assert max(map(len, draw(1))) <= 200


def test_every_dialogue_has_targets() -> None:
    utterances = [spoken(frames=frames, voice=voice) for frames in (3, 4) for voice in range(4)]
    batches = ConversationMixer(utterances, 0, tokens=1).batches(
        StagePlan("talk", 1, max_frames=10, dialogues=1.0, voices=4)
    )
    assert all((batch.labels != IGNORE).any() for batch in itertools.islice(batches, 40))


def test_joined_utterances_are_one_paragraph() -> None:
    paragraph = join_utterances([spoken(frames=6), spoken("Not so.", frames=4)])
    assert paragraph.utterance.text == "Hi there. Not so."
    assert paragraph.utterance.frames == len(paragraph.codes) == 10
    assert paragraph.utterance.words == ((0, 0.0), (3, 2.5), (10, 6.0), (13, 8.5))
