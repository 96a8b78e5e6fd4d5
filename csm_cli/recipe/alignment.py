"""Which part of a text is heard when: from a teacher's phonemes and their durations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from csm_cli.recipe.sentences import spell_number

_LETTERS_PER_PHONEME = 0.8  # phonemes per letter of English spelling
_MAX_SPOKEN_WORDS = 8  # that one written token stands for
_MARKS = ".,?!;:"
_STRESS = "ˈˌ"
_DIGITS = re.compile(r"(\d+)")
_VOWELS = "æɐɑɔəɚɛɜɪʊʌᵊᵻaeiouAIOWY"
_INITIALS = {
    **dict.fromkeys("aeio", _VOWELS),
    **{letter: letter for letter in "bdflmv"},
    **{"c": "ksʧ", "g": "ɡʤ", "h": f"h{_VOWELS}", "j": "ʤj", "k": "kn", "n": "n", "p": "pf", "q": "k", "r": "ɹ"},
    **{"s": "sʃ", "t": "tθðʧʃ", "u": f"{_VOWELS}j", "w": f"wɹh{_VOWELS}", "x": "z", "y": f"j{_VOWELS}", "z": "z"},
}
"""Phonemes with which a word that starts with a letter can start."""


@dataclass(frozen=True)
class PhonemeWord:
    """A run of phonemes between spaces, and where it starts and ends in units of the durations."""

    phonemes: str
    start: int
    end: int


def phoneme_words(phonemes: str, durations: Sequence[int]) -> list[PhonemeWord]:
    """The words of a phoneme string; durations [P + 2] are of a pad, each phoneme and a pad.

    Punctuation at a word's end is not part of its time: it is the pause after it.
    """
    words, at, start, run = [], durations[0], durations[0], ""
    end = at
    for symbol, duration in zip(phonemes, durations[1:-1], strict=True):
        if symbol == " ":
            if run:
                words.append(PhonemeWord(run, start, end))
            run = ""
        else:
            if not run:
                start = at
            run += symbol
            if symbol not in _MARKS:
                end = at + duration
        at += duration
    if run:
        words.append(PhonemeWord(run, start, max(end, start)))
    return words


def align_words(text: str, phonemes: str, durations: Sequence[int]) -> list[tuple[int, int]]:
    """(byte of the text, time in units) anchors: where each written word starts and where it ends, in order.

    Written words are matched to runs of spoken ones by the cheapest monotonic path: a number is several spoken words,
    punctuation at the end of both speaks for a match. Where there is none, the text is laid over the whole time.
    """
    tokens = [match for match in re.finditer(r"\S+", text) if re.search(r"\w", match[0])]
    words = phoneme_words(phonemes, durations)
    if not tokens or not words:
        return [(0, durations[0]), (len(text.encode()), max(durations[0], sum(durations[:-1])))]
    anchors = []
    for token, (first, last) in zip(tokens, _match([token[0] for token in tokens], words), strict=True):
        start, end = (len(text[:place].encode()) for place in token.span())
        anchors += [(start, words[first].start), (end, words[last - 1].end)]
    return anchors


def _match(tokens: Sequence[str], words: Sequence[PhonemeWord]) -> list[tuple[int, int]]:
    """For each token, the half-open range of words that say it; with fewer words than tokens, some share one."""
    if len(words) < len(tokens):
        places = [index * len(words) // len(tokens) for index in range(len(tokens))]
        return [(place, place + 1) for place in places]
    infinite = float("inf")
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(infinite, 0)] * len(words)]
    for token in tokens:
        row = [(infinite, 0)]
        for end in range(1, len(words) + 1):
            starts = range(max(0, end - _MAX_SPOKEN_WORDS), end)
            row.append(min((best[-1][start][0] + _cost(token, words[start:end]), start) for start in starts))
        best.append(row)
    ranges, end = [], len(words)
    for row in reversed(best[1:]):
        start = row[end][1]
        ranges.append((start, end))
        end = start
    return ranges[::-1] if end == 0 else [(index, index + 1) for index in range(len(tokens))]


def _cost(token: str, words: Sequence[PhonemeWord]) -> float:
    """How unlike a written token and some spoken words are, in phonemes."""
    spoken = [symbol for word in words for symbol in word.phonemes if symbol not in _MARKS + _STRESS]
    count, length = _expected(token)
    cost = abs(len(spoken) - length) + 2.0 * abs(len(words) - count)
    mark, transcript = (text[-1] if text[-1] in _MARKS else "" for text in (token.rstrip("\"')"), words[-1].phonemes))
    first = next((char.lower() for char in token if char.isalnum()), "")
    unlike = first in _INITIALS and bool(spoken) and spoken[0] not in _INITIALS[first]
    return cost + (0.0 if mark == transcript else 3.0) + (2.0 if unlike else 0.0)


def _expected(token: str) -> tuple[int, float]:
    """(number of spoken words, number of phonemes) that a written token probably has."""
    count, letters = 0, 0
    for part in _DIGITS.split(token):
        if part.isdigit():
            number = int(part[:6])
            if len(part) == 4 and 1100 <= number < 2100:  # a year is said in two halves
                spelled = f"{spell_number(number // 100)} {spell_number(number % 100)}"
            else:
                spelled = spell_number(number)
            count += len(spelled.split())
            letters += sum(char.isalpha() for char in spelled)
        else:
            alphabetic = sum(char.isalpha() for char in part)
            letters += alphabetic
            count += bool(alphabetic) and count == 0
    return max(1, count), _LETTERS_PER_PHONEME * letters
