"""Training sentences of the bundled voice, from templates, everyday words and a word list.

Held-out words (chosen by a hash) and held-out sentences never occur in training text.
"""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.recipe import lexicon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORD_LIST = Path("/usr/share/dict/american-english")
HELD_OUT_SEED = 20_260
_HELD_OUT_SHARE = 50
_SLOT = re.compile(r"\{(\w+)\}")

SENTENCES = """{Np} {past} {np}.|{Np} {past} {np} {prep} {np}.|{Name} {past} {np} {adv}.|{Np} {motion} {prep} {np}.
{Pron} {motion} {prep} {np} {adv}.|{Name} and {name} {motion} {prep} {np}.|{Np} was {adj} and {adj}.|{Np} is {adj}.
{Np} {prep} {np} is very {adj}.|{Pron} {past} {number} {noun}s.|There are {number} {noun}s {prep} {np}.
There was {a_np} {prep} {np}.|Did {name} {base} {np}?|Do you {base} {np}?|Where is {np}?|Who {past} {np}?
Why did {pron} {base} {np}?|When will {name} {base} {np}?|How many {noun}s did {pron} {base}?|Can you {base} {np}?
Please {base} {np}.|Do not {base} {np}!|What {a_np}!|How {adj} {np} is!|Let us {base} {np} {adv}.
{Adv}, {pron} {past} {np}.|{Pron} will {base} {np} on {day}.|It was {month} {ordinal}.
On {month} {ordinal}, {pron} {past} {np}.
The year is {year}.|In {year}, {np} was {adj}.|It is {hour} o'clock.|The train leaves at {hour} {minute}.
My number is {digits}.|It costs {number} dollars.|{Name} is {number} years old.|We need {noun}s, {noun}s and {noun}s.
If {pron} {past} {np}, {pron} {motion} {prep} {np}.|{Np} {past} {np}, but {pron} {past} {np}.
{Pron} said that {np} was {adj}.
I want to {base} {np}.|{Name} said, {phrase}|The {rare} {prep} {np} was {adj}.|{Np} and {rare}.|The word is {rare}.
{Rare} is {adj}.|{Name} likes {rare} and {rare}.|{Pron} {past} {rare} {prep} {np}.|Is it {rare} or {rare}?"""

SHORT = """{Rare}.|{Rare} {rare}.|{Rare} {rare} {rare}.|{Adj} {noun}.|The {noun}.|{Number}.|{phrase}|{Name}.
{Rare} {noun}.
{Adj} {rare}!|{Noun} and {noun}.|{Pron} {motion}.|{Base} it.|{Month} {ordinal}.|{digits}.|{Adv} {adj}.
{Rare}?|{Rare}, {rare}.
{prep} {np}.|{Day}.|{Name} {past} {noun}s."""

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


_EVERYDAY = frozenset(
    form
    for name, words in vars(lexicon).items()
    if name.isupper()
    for word in re.findall(r"[a-z]+", " ".join(words if isinstance(words, list) else [words]).lower())
    for form in (word, f"{word}s")
)


def is_held_out(word: str) -> bool:
    """Whether a word is reserved for evaluation: one in fifty by its CRC-32, never an everyday word."""
    word = word.lower()
    return word not in _EVERYDAY and zlib.crc32(word.encode()) % _HELD_OUT_SHARE == 0


def word_list(path: Path = WORD_LIST) -> list[str]:
    """Lower-case words of 3 to 11 letters, in the file's order."""
    words = path.read_text(encoding="utf-8").split()
    return [word for word in words if re.fullmatch(r"[a-z]{3,11}", word)]


def spell_number(number: int) -> str:
    """English words for 0 to 999,999."""
    if number < 20:
        return _ONES.split()[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES.split()[ones]}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = divmod(number, unit)
    return f"{spell_number(head)} {name}" + (f" {spell_number(rest)}" if rest else "")


class SentenceWriter:
    """Fills sentence templates; the same seed and rare words give the same sentences.

    rare: words for the `{rare}` slots, each used once before any is used again.
    """

    def __init__(self, seed: int, rare: list[str]) -> None:
        self._random = random.Random(seed)
        self._rare = rare
        self._queue: list[str] = []
        self._slots: dict[str, Callable[[], str]] = {
            "name": lambda: self._random.choice(lexicon.NAMES),
            "noun": lambda: self._random.choice(lexicon.NOUNS),
            "adj": lambda: self._random.choice(lexicon.ADJECTIVES),
            "past": lambda: self._random.choice(lexicon.PAST_VERBS),
            "base": lambda: self._random.choice(lexicon.BASE_VERBS),
            "motion": lambda: self._random.choice(lexicon.MOTION),
            "prep": lambda: self._random.choice(lexicon.PREPOSITIONS),
            "adv": lambda: self._random.choice(lexicon.ADVERBS),
            "month": lambda: self._random.choice(lexicon.MONTHS),
            "day": lambda: self._random.choice(lexicon.DAYS),
            "phrase": lambda: self._random.choice(_lines(lexicon.PHRASES)),
            "pron": lambda: self._random.choice(["he", "she", "they", "we", "I", "you"]),
            "ordinal": lambda: self._random.choice(["1st", "2nd", "3rd", *(f"{day}th" for day in range(4, 21))]),
            "year": lambda: str(self._random.randint(1800, 2040)),
            "hour": lambda: self._number(1, 12),
            "minute": lambda: self._number(10, 59),
            "digits": lambda: " ".join(str(self._random.randint(0, 9)) for _ in range(self._random.randint(3, 5))),
            "number": lambda: self._number(2, self._random.choice([12, 99, 999, 9999])),
            "rare": self._next_rare,
            "np": self._noun_phrase,
            "a_np": lambda: _with_article(
                self._random.choice([*lexicon.ADJECTIVES]), self._random.choice(lexicon.NOUNS)
            ),
        }

    def sentence(self) -> str:
        """A sentence, mostly of four words or more."""
        return self._fill(self._random.choice(_lines(SENTENCES)))

    def short(self) -> str:
        """An utterance, mostly of one to three words."""
        return self._fill(self._random.choice(_lines(SHORT)))

    def _fill(self, template: str) -> str:
        text = _SLOT.sub(self._slot, template)
        return text[0].upper() + text[1:]

    def _slot(self, match: re.Match[str]) -> str:
        name = match[1]
        text = self._slots[name.lower()]()
        return text[0].upper() + text[1:] if name[0].isupper() else text

    def _number(self, low: int, high: int) -> str:
        number = self._random.randint(low, high)
        return str(number) if self._random.random() < 0.5 else spell_number(number)

    def _next_rare(self) -> str:
        if not self._queue:
            self._queue = self._random.sample(self._rare, len(self._rare))
        return self._queue.pop()

    def _noun_phrase(self) -> str:
        noun = self._next_rare() if self._random.random() < 0.15 else self._random.choice(lexicon.NOUNS)
        article = self._random.choice(["the", "the", "my", "your", "his", "her", "our", "this", "that", "every"])
        if self._random.random() < 0.35:
            return f"{article} {self._random.choice(lexicon.ADJECTIVES)} {noun}"
        return f"{article} {noun}"


def training_words(path: Path = WORD_LIST) -> list[str]:
    """The word list without the held-out words."""
    return [word for word in word_list(path) if not is_held_out(word)]


def held_out_sentences(count: int = 200, path: Path = WORD_LIST) -> list[str]:
    """The fixed evaluation sentences of 20 to 70 characters, their rare words all held out."""
    writer = SentenceWriter(HELD_OUT_SEED, [word for word in word_list(path) if is_held_out(word)])
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        text = writer.sentence()
        if 20 <= len(text) <= 70:
            chosen[text] = None
    return list(chosen)


def training_texts(seed: int, rare: list[str], short_share: float = 1 / 3) -> Iterator[str]:
    """Endless training texts without held-out sentences and words."""
    writer, rng = SentenceWriter(seed, rare), random.Random(seed + 1)
    held_out = set(held_out_sentences())
    while True:
        text = writer.short() if rng.random() < short_share else writer.sentence()
        if text not in held_out:
            yield text


def _lines(block: str) -> list[str]:
    return block.replace("\n", "|").split("|")


def _with_article(adjective: str, noun: str) -> str:
    return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"
