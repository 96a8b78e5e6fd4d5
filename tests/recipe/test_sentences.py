"""Training text: deterministic, without held-out words and sentences."""

from __future__ import annotations

import itertools
import re

import pytest

from csm_cli.recipe.sentences import (
    SentenceWriter,
    held_out_sentences,
    is_held_out,
    spell_number,
    training_texts,
)

pytestmark = pytest.mark.espeak

WORDS = ["apricot", "bramble", "cobalt", "dulcimer", "ember", "falcon", "gable", "harvest", "ingot", "juniper"]


def test_texts_depend_on_the_seed() -> None:
    first, again, other = (list(itertools.islice(training_texts(seed, WORDS), 50)) for seed in (3, 3, 4))
    assert first == again != other


def test_no_training_text_is_held_out() -> None:
    texts = list(itertools.islice(training_texts(1, [word for word in WORDS if not is_held_out(word)]), 3000))
    assert not set(texts) & set(held_out_sentences())
    words = set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    assert not [word for word in words if is_held_out(word)]


def test_held_out_sentences_are_fixed_and_distinct() -> None:
    sentences = held_out_sentences()
    assert sentences == held_out_sentences()
    assert len(set(sentences)) == 200
    with_held_out_words = [any(is_held_out(word) for word in re.findall(r"[a-z]+", text.lower())) for text in sentences]
    assert sum(with_held_out_words) > 40


def test_a_third_of_the_texts_are_short() -> None:
    texts = list(itertools.islice(training_texts(5, WORDS), 3000))
    short = sum(len(text.split()) <= 3 for text in texts) / len(texts)
    assert 0.28 < short < 0.45


def test_every_rare_word_is_used_before_any_repeats() -> None:
    writer = SentenceWriter(0, WORDS)
    seen = [word for text in (writer.sentence() for _ in range(400)) for word in re.findall("[a-z]+", text.lower())]
    seen = [word for word in seen if word in WORDS]
    assert sorted(seen[: len(WORDS)]) == sorted(WORDS)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (105, "one hundred five"),
        (1999, "one thousand nine hundred ninety-nine"),
        (20_000, "twenty thousand"),
    ],
)
def test_spell_number(number: int, words: str) -> None:
    assert spell_number(number) == words
