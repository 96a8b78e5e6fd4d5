"""When each part of a text is heard: written words matched to the teacher's phonemes."""

from __future__ import annotations

import pytest

from csm_cli.recipe.alignment import align_words, phoneme_words


def spoken(words: str) -> tuple[str, list[int]]:
    """Phonemes as given, each two units long, after a pad of ten units and before one of one."""
    return words, [10, *([2] * len(words)), 1]


def transcript(text: str, words: str) -> dict[str, str]:
    """For each written word, the phonemes between its anchors."""
    phonemes, durations = spoken(words)
    anchors = align_words(text, phonemes, durations)
    found = {}
    for (start, since), (end, until) in zip(anchors[::2], anchors[1::2], strict=True):
        found[text.encode()[start:end].decode()] = phonemes[(since - 10) // 2 : (until - 10) // 2]
    return found


def test_a_word_ends_before_its_pause() -> None:
    first, second = phoneme_words(*spoken("nˈO, nˈaʊ."))
    assert (first.phonemes, first.start, first.end) == ("nˈO,", 10, 16)
    assert (second.start, second.end) == (20, 28)


@pytest.mark.parametrize(
    ("text", "phonemes", "expected"),
    [
        ("No cat sat.", "nˈO kˈæt sˈæt.", {"No": "nˈO", "cat": "kˈæt", "sat.": "sˈæt"}),
        ("It costs 420 dollars.", "ˌɪt kˈɔsts fˈɔɹ hˈʌndɹəd twˈɛnti dˈɑləɹz.", {"420": "fˈɔɹ hˈʌndɹəd twˈɛnti"}),
        ("In 1961, he left.", "ɪn nˌIntˈin sˈɪksti wˈʌn, hi lˈɛft.", {"1961,": "nˌIntˈin sˈɪksti wˈʌn", "he": "hi"}),
        ("Zoë, so? No!", "zˈOi, sˈO? nˈO!", {"Zoë,": "zˈOi", "so?": "sˈO", "No!": "nˈO"}),
    ],
)
def test_written_words_find_their_spoken_ones(text: str, phonemes: str, expected: dict[str, str]) -> None:
    found = transcript(text, phonemes)
    assert {word: found[word] for word in expected} == expected


def test_anchors_are_in_order_whatever_is_said() -> None:
    for text in ("A b c d e f.", "1 2 3", "word", "..."):
        anchors = align_words(text, *spoken("wˈʌn tˈu."))
        assert anchors == sorted(anchors)
        assert anchors[-1][0] <= len(text.encode())
