"""Text that arrives in pieces, as sentences."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csm_cli.generation.text_stream import SentenceStream

LONG_WORD = "x" * 1000


def sentences(*pieces: str) -> list[str]:
    stream = SentenceStream()
    return [sentence for piece in pieces for sentence in stream.push(piece)] + stream.finish()


def test_a_sentence_is_complete_after_a_word_of_the_next_one() -> None:
    stream = SentenceStream()
    assert stream.push("Hello") == stream.push(" there.") == stream.push(" ") == []
    assert stream.push("How") == [] and stream.push(" ") == ["Hello there."]
    assert stream.push("are you?\n\n") == ["How are you?"]
    assert stream.push("Fi") == [] and stream.finish() == ["Fi"]
    assert stream.finish() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I met Dr. Smith. He is 3.5 m tall. ", ["I met Dr. Smith.", "He is 3.5 m tall."]),
        ("Version 3.1 is out! Get it.", ["Version 3.1 is out!", "Get it."]),
        ("A title\n\nThe text.", ["A title", "The text."]),
        ("---\n\n***\n\nWords.", ["--- *** Words."]),
        ("Words.\n\n---", ["Words."]),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", ["\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_are_those_of_long_texts(text: str, expected: list[str]) -> None:
    assert sentences(text) == sentences(*text) == expected


def test_a_sentence_without_an_end_is_spoken_in_pieces_while_it_grows() -> None:
    stream = SentenceStream(chunk_chars=80)
    found = [piece for _ in range(200) for piece in stream.push("and so on, ")]
    assert len(found) > 20 and len(stream.pending) <= 160 and all(len(piece) <= 160 for piece in found)
    assert "".join([*found, *stream.finish()]).replace(" ", "") == "andsoon," * 200
    assert max(map(len, sentences(LONG_WORD))) <= 160 and len("".join(sentences(LONG_WORD))) == 1000


WORDS = st.sampled_from(["a", "Dr.", "Hello", "3.", "3.5", "e.g.", "end.", "What?", "No!", "(so)", "U.S."])
SPACE = st.sampled_from([" ", "  ", "\n", "\n\n", " \n"])


@settings(max_examples=60)
@given(st.lists(st.tuples(WORDS, SPACE), max_size=12), st.data())
def test_sentences_do_not_depend_on_how_the_text_is_cut(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    text = "".join(word + space for word, space in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert sentences(*pieces) == sentences(text)


@example(["0\t" * 100 + "\u4f60" * 150])  # textwrap makes spaces of tabs
@example(["\u4f60" * 120 + "\u3002)" + "\u4f60" * 120])
@example([" " * 5000, "a" * 200, " " * 5000])
@given(st.lists(st.one_of(st.text(max_size=40), st.text("a0 \t\n.\u3002)\u4f60", max_size=400)), max_size=8))
def test_no_word_is_lost(pieces: list[str]) -> None:
    found = "".join(sentences(*pieces))
    letters = [char for char in "".join(pieces) if char.isalnum()]
    assert [char for char in found if char.isalnum()] == letters
