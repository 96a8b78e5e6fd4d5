"""What of a text is spoken in one breath, and how its words are spelled for that. No torch here."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping

# So much is spoken at once. The bundled voice says 48 of 48 sentences right at two a turn (67 characters), 44 at three
# (101), 34 of 45 at five (166).
DEFAULT_CHUNK_CHARS = 80
MIN_CHUNK_CHARS = 20
MAX_SENTENCE_CHUNKS = 2  # times as much: only a longer sentence is cut at its clauses

_CLAUSE = re.compile(r"(?<=[,;:\u2014\u2013]\s)|(?<=[\u3001\uff0c\uff1b\uff1a])")
_PARAGRAPH = re.compile(r"\n\s*\n")
_WIDE = 3  # a Chinese, Japanese or Korean character is said as slowly as so many Latin ones


def spoken_length(text: str) -> int:
    """Characters, by how long they take to say."""
    return sum(_WIDE if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def split_text(text: str, most: int = DEFAULT_CHUNK_CHARS) -> tuple[str, ...]:
    """The parts in which a long text is spoken, in order: sentences, as many together as make `most` characters.

    A sentence twice as long is cut at its clauses, a clause as long between words. `most` 0 keeps the text whole.
    """
    if not most or spoken_length(text) <= most:
        return (text,)
    try:
        paragraphs = [_joined(_sentences(each, most), most) for each in _PARAGRAPH.split(text)]
    except UnicodeEncodeError:  # a lone surrogate, which is complained about where text becomes tokens
        return (text,)
    return tuple(_with_words(part for paragraph in paragraphs for part in paragraph))


def _sentences(text: str, most: int) -> Iterable[str]:
    """Sentences with the space after them, the huge ones in smaller pieces."""
    from sentencex import segment

    for sentence in segment("en", text):
        if spoken_length(sentence) <= MAX_SENTENCE_CHUNKS * most:
            yield sentence
        else:
            yield from _joined(_clauses(sentence, most), most)


def _clauses(sentence: str, most: int) -> Iterable[str]:
    for clause in _CLAUSE.split(sentence):
        if spoken_length(clause) <= MAX_SENTENCE_CHUNKS * most:
            yield clause
        else:
            narrow = max(1, most * len(clause) // spoken_length(clause))
            yield from textwrap.wrap(clause, narrow, drop_whitespace=False, break_on_hyphens=False)


def _joined(pieces: Iterable[str], most: int) -> list[str]:
    """Neighbours together, as long as they are no longer than `most`."""
    joined: list[str] = []
    for piece in pieces:
        if joined and spoken_length((joined[-1] + piece).strip()) <= most:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _with_words(parts: Iterable[str]) -> list[str]:
    """What has no letter or digit, such as a lone bracket, goes with the part before it."""
    kept: list[str] = []
    for part in filter(None, map(str.strip, parts)):
        if kept and not (_speakable(part) and _speakable(kept[-1])):
            kept[-1] += f" {part}"
        else:
            kept.append(part)
    return kept


def _speakable(text: str) -> bool:
    return any(char.isalnum() for char in text)


def apply_lexicon(text: str, lexicon: Mapping[str, str]) -> str:
    """`text` with whole words replaced as in `lexicon`, whatever their case; longer entries count first."""
    if not lexicon:
        return text
    spellings = {word.casefold(): respelling for word, respelling in lexicon.items()}
    words = "|".join(re.escape(word) for word in sorted(lexicon, key=len, reverse=True))
    whole = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return whole.sub(lambda found: spellings.get(found[0].casefold(), found[0]), text)
