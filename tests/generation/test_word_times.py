"""Words of a text with the times of the words that a recognizer recognized."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csm_cli.audio.io import Audio
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.verification import RecognizedWord
from csm_cli.generation.word_times import align_words, split_words, time_words
from csm_cli.types import Conversation, TimedWord, Turn

RATE = 24_000


def recognized(*words: str, start: float = 1.0, length: float = 1.0) -> list[RecognizedWord]:
    """Words one after another, each as long."""
    return [RecognizedWord(word, start + length * at, start + length * (at + 1)) for at, word in enumerate(words)]


def shown(words: Sequence[TimedWord]) -> list[tuple[str, float, float, bool]]:
    return [(word.text, round(word.start, 3), round(word.end, 3), word.recognized) for word in words]


def test_the_words_of_the_text_take_the_times_of_those_heard() -> None:
    words = align_words('"Hello," she -- said.', recognized("hello", "she", "said"), (1.0, 4.0))
    assert shown(words) == [('"Hello,"', 1, 2, True), ("she", 2, 3, True), ("said.", 3, 4, True)]


@pytest.mark.parametrize(
    ("text", "sounds", "expected"),
    [
        ("Ask Nguyen now", ["ask", "win", "now"], [(1, 2, True), (2, 3, False), (3, 4, True)]),
        ("Ask Anna now", ["ask", "ana", "now"], [(1, 2, True), (2, 3, True), (3, 4, True)]),
        ("one two six", ["one", "six"], [(1, 2, True), (2, 2, False), (2, 3, True)]),
        ("two three", ["one", "two", "three"], [(2, 3, True), (3, 4, True)]),
        ("a lone wolf", ["alone", "wolf"], [(1, 1.2, True), (1.2, 2, True), (2, 3, True)]),
        ("Doctor no.", ["Dr.", "no"], [(1, 2, True), (2, 3, True)]),
    ],
)
def test_words_that_were_not_heard_are_marked(
    text: str, sounds: list[str], expected: list[tuple[float, float, bool]]
) -> None:
    words = align_words(text, recognized(*sounds), (1.0, 4.0))
    assert [each[1:] for each in shown(words)] == expected


def test_missing_words_lie_between_their_neighbours_by_length() -> None:
    sounds = [RecognizedWord("one", 1.0, 2.0), *recognized("four", "five", start=5.0)]
    words = align_words("one a bcd four five", sounds, (0.5, 7.0))
    assert shown(words)[1:3] == [("a", 2.0, 2.75, False), ("bcd", 2.75, 5.0, False)]
    assert shown(words)[4] == ("five", 6.0, 7.0, True)


def test_without_any_heard_word_all_are_spread_over_the_speech() -> None:
    assert shown(align_words("ab cd", [], (1.0, 3.0))) == [("ab", 1, 2, False), ("cd", 2, 3, False)]


def test_a_chance_match_among_wrong_words_moves_no_other_word() -> None:
    sounds = [RecognizedWord("day", 0.0, 0.4), RecognizedWord("after", 0.4, 1.0)]
    words = align_words("It is a fine day.", sounds, (0.0, 1.3))
    assert [word.recognized for word in words] == [False] * 5
    assert [round(word.end, 1) for word in words] == [0.2, 0.4, 0.5, 1.0, 1.3]


def test_languages_without_spaces_have_a_time_for_each_character() -> None:
    words = align_words("\u4f60\u597d, BBC!", recognized("\u4f60\u597d", "BBC"), (1.0, 3.0), "zh")
    assert shown(words) == [("\u4f60", 1, 1.5, True), ("\u597d,", 1.5, 2, True), ("BBC!", 2, 3, True)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["one", "two", "tree", "x"]), max_size=8),
    st.lists(st.tuples(st.sampled_from(["one", "two", "three", "y"]), st.floats(0, 9), st.floats(0, 2)), max_size=8),
)
def test_every_word_is_there_once_and_in_order(names: list[str], sounds: list[tuple[str, float, float]]) -> None:
    spoken = sorted(
        (RecognizedWord(name, start, start + length) for name, start, length in sounds), key=lambda w: w.start
    )
    words = align_words(" ".join(names), spoken, (0.0, 11.0))
    assert [each.text for each in words] == names
    times = [time for each in words for time in (each.start, each.end)]
    assert times == sorted(times)


class Listener:
    """Hears a word, of the given text, wherever a burst of sound is; records how long each window was."""

    def __init__(self, *words: str) -> None:
        self.words_left, self.windows = list(words), list[float]()

    def transcribe(self, audio: Audio) -> str:
        raise AssertionError("only words are asked for")

    def words(self, audio: Audio) -> list[RecognizedWord]:
        self.windows.append(audio.duration)
        loud = np.flatnonzero(np.abs(audio.samples) > 0.1) / audio.rate
        bursts = np.split(loud, np.flatnonzero(np.diff(loud) > 0.05) + 1)
        # as Whisper does, with the pause before a word as part of it
        ends = [0.0, *(float(burst[-1]) for burst in bursts)]
        return [RecognizedWord(self.words_left.pop(0), ends[at], ends[at + 1]) for at in range(len(bursts))]


def bursts(*starts: float, length: float) -> Audio:
    samples = np.zeros(round(length * RATE), np.float32)
    for start in starts:
        samples[round(start * RATE) : round((start + 0.2) * RATE)] = 0.5
    return Audio(samples, RATE)


def test_short_turns_are_heard_together_and_pauses_are_no_part_of_words() -> None:
    conversation = Conversation((Turn(0, "One two.", speed=2.0), Turn(1, "Three.")))
    codes = np.zeros((0, 0), np.int64)
    segments = (Segment("One", 0.0, 1.0, 3), Segment("two.", 1.0, 2.0, 4))
    utterances = [
        Utterance(conversation, conversation.turns[0], codes, bursts(0.4, 1.5, length=2.0), "eos", segments=segments),
        Utterance(conversation, conversation.turns[1], codes, bursts(0.1, length=1.0), "recorded"),
    ]
    listener = Listener("one", "two", "three")
    first, second = time_words(utterances, listener)
    assert listener.windows == [pytest.approx(0.5 * 3 + 3.0)]
    assert [(each.text, each.frames) for each in first.segments] == [("One", 3), ("two.", 4)]
    assert shown([*first.segments[0].words, *first.segments[1].words]) == [
        ("One", 0.4, 0.6, True),
        ("two.", 1.5, 1.7, True),
    ]
    assert shown(second.segments[0].words) == [("Three.", 0.1, 0.3, True)]
    assert shown(first.track_segments[1].words) == [("two.", 0.75, 0.85, True)]


def test_windows_are_no_longer_than_whisper_hears_at_a_time() -> None:
    turn = Turn(0, "Hm.")
    utterance = Utterance(
        Conversation((turn,)), turn, np.zeros((0, 0), np.int64), bursts(1.0, length=9.0), "recorded", number=1
    )
    listener = Listener(*["hm"] * 5)
    timed = time_words([utterance] * 5, listener)
    assert listener.windows == [pytest.approx(19.0), pytest.approx(19.0), pytest.approx(9.5)]
    assert {word.start for each in timed for word in each.segments[0].words} == {1.0}


def test_punctuation_alone_is_no_word() -> None:
    assert split_words("Well \u2014 yes , no...") == ["Well", "yes", "no..."]
