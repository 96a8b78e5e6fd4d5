"""Where long texts are split, and which words are respelled."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csm_cli.generation.chunking import MAX_SENTENCE_CHUNKS, split_text, spoken_length
from csm_cli.script.lexicon import apply_lexicon

# Each is one sentence with what looks like the end of one, and the sentence that follows it.
HARD = [
    ("Dr. Smith arrived at 3 p.m. on Tuesday.", "He left at once."),
    ("It costs $3.50, i.e. 2.5 times as much as before.", "Nobody minded."),
    ("See https://example.com/a.b?c=d.e for details.", "Then write to me at j.doe@example.co.uk."),
    ("Mr. and Mrs. J. R. R. Tolkien lived on St. Giles St. in Oxford.", "They liked it."),
    ('"Where are you going?" she asked.', '"Out!" he expected.'),
    ("The U.S. economy grew 2.1 percent.", "The U.K. did not."),
    ("Version 2.0.1 is out.", "Get it at v. 2.0.1 now."),
    ("Items e.g. apples, pears etc. are cheap.", "Buy them."),
    ("No. 5 is alive.", "She sat in Seat No. 7 of the bus."),
    ("He earned a Ph.D. in 1999.", "She holds an M.A. from Yale."),
    ("Wait... what did you say?", "I heard nothing."),
    ("Prof. Dr. Müller et al. (2019) show this in Fig. 3.", "It works."),
    ("今天天气很好。", "我们去公园吧。"),
]


@pytest.mark.parametrize("sentences", HARD, ids=lambda pair: pair[0][:12])
def test_a_text_is_split_where_a_sentence_ends(sentences: tuple[str, str]) -> None:
    text = " ".join(sentences)
    assert split_text(text, max(map(spoken_length, sentences))) == sentences


def test_short_texts_and_chunk_chars_0_stay_whole() -> None:
    text = "One. Two.\n Three. "
    assert split_text(text) == split_text(text, 0) == (text,)
    assert split_text("Word. " * 100, 0) == ("Word. " * 100,)


def test_short_sentences_go_together_and_paragraphs_do_not() -> None:
    assert split_text("One is. Two is.\n\nThree is. Four is also here.", 25) == (
        "One is. Two is.",
        "Three is.",
        "Four is also here.",
    )


def test_a_long_sentence_is_split_at_clauses_and_a_long_clause_between_words() -> None:
    clauses = "when it rains, we stay; when it shines, we go out; and that is all, "
    assert split_text(clauses * 2, 40) == (
        "when it rains, we stay; when it shines,",
        "we go out; and that is all,",
        "when it rains, we stay; when it shines,",
        "we go out; and that is all,",
    )
    assert split_text("word " * 12, 20) == ("word word word word",) * 3


def test_numbers_are_not_split() -> None:
    chunks = split_text("It was 1,000,000 or 10:30 " * 8, 30)
    assert not [chunk for chunk in chunks if chunk.endswith((",", ":"))]


def test_a_chunk_has_at_least_one_word() -> None:
    assert split_text("It is here. ... ??? It is there.", 12) == ("It is here. ... ???", "It is there.")
    assert len(split_text("... " * 100, 20)) == 1


def test_wide_characters_count_three() -> None:
    assert spoken_length("天气 ok") == 9
    assert max(map(spoken_length, split_text("天" * 200, 30))) <= 30


@given(st.text(max_size=400), st.integers(20, 60))
def test_chunks_contain_the_whole_text(text: str, chunk_chars: int) -> None:
    chunks = split_text(text, chunk_chars)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    if len(chunks) > 1:
        assert all(any(char.isalnum() for char in chunk) for chunk in chunks)


@given(st.lists(st.sampled_from(["word", "and", "go,", "there.", "No!", "so;"]), max_size=200), st.integers(20, 60))
def test_no_chunk_exceeds_two_chunks(words: list[str], chunk_chars: int) -> None:
    assert all(
        spoken_length(chunk) <= MAX_SENTENCE_CHUNKS * chunk_chars for chunk in split_text(" ".join(words), chunk_chars)
    )


def test_a_text_that_is_not_unicode_stays_whole() -> None:
    text = "Hello \udcff there. " * 20
    assert split_text(text) == (text,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nguyen met NGUYEN's son.", "win met win's son."),
        ("Nguyenly, or Nguyen_2", "Nguyenly, or Nguyen_2"),
        ("C++ and C", "see plus plus and sea"),
        ("New York, york", "the big apple, jork"),
        ("", ""),
    ],
)
def test_whole_words_are_respelled_ignoring_case(text: str, expected: str) -> None:
    lexicon = {"nguyen": "win", "C": "sea", "C++": "see plus plus", "York": "jork", "new york": "the big apple"}
    assert apply_lexicon(text, lexicon) == expected


def test_a_respelling_is_not_respelled() -> None:
    assert apply_lexicon("a b", {"a": "b", "b": "a"}) == "b a"
    assert apply_lexicon(r"a \1", {"a": r"\g<0>\1"}) == r"\g<0>\1 \1"


def test_short_texts_do_not_import_sentencex() -> None:
    code = "import csm_cli.generation.chunking as w, sys; w.split_text('Hi.'); print('sentencex' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
