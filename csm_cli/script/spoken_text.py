"""Text as it is spoken: Unicode composed, invisible characters removed, and whether anything is left to speak."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Zero-width spaces, joiners and marks of direction, soft hyphens, byte order marks, tags and variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"
)
_JOINER = re.compile(
    "(?<![\u0600-\u08ff\u0900-\u0dff\u1000-\u109f])[\u200c\u200d]|[\u200c\u200d](?![\u0600-\u08ff\u0900-\u0dff\u1000-\u109f])"
)
_SPACES = re.compile("[\x0b\x0c\u2028\u2029]")  # form feeds of PDFs, line breaks of editors
MAX_PAUSE_SECONDS = 60.0
PAUSE = re.compile(r"\[pause (\d{1,2}(?:\.\d{1,3})?)\]")  # in seconds
_LIKE_PAUSE = re.compile(r"\[pause[ :=]*[-+]?[\d.,][^\[\]\n]{0,20}\]", re.IGNORECASE)
_SPOKEN_SYMBOLS = frozenset("%&@#°§")
_LATIN = "LATIN"


def clean_text(text: str) -> str:
    """A text in Unicode's composed form (NFC) without characters that are neither seen nor spoken.

    Form feeds, vertical tabs and the line breaks of other systems become spaces. No letter is lost: joiners stay
    between letters of scripts that are written with them, such as Persian and Hindi.
    """
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", _JOINER.sub("", _INVISIBLE.sub("", _SPACES.sub(" ", text))))


def is_speakable(text: str) -> bool:
    """Whether a text has a letter, a digit or a symbol with a name, such as a percent sign, besides its pauses."""
    text = PAUSE.sub("", text) if "[pause" in text else text
    return any(char.isalnum() or char in _SPOKEN_SYMBOLS or unicodedata.category(char) in ("Sc", "Sm") for char in text)


def pause_problem(text: str) -> str:
    """What is wrong with a pause in a text, such as `[pause 0,5]`; empty if nothing is."""
    for match in _LIKE_PAUSE.finditer(text):
        pause = PAUSE.fullmatch(match[0])
        if not pause or float(pause[1]) > MAX_PAUSE_SECONDS:
            return f"expected a pause such as [pause 0.5], of 0 to {MAX_PAUSE_SECONDS:g} seconds, got {match[0]}"
    return ""


def foreign_script(text: str) -> str:
    """The name of the writing system, such as Cyrillic, that most letters of a text are of; empty for Latin."""
    letters = [char for char in text if char.isalpha()]
    if all(char.isascii() for char in letters):
        return ""
    counts = Counter(unicodedata.name(char, "?").split()[0].split("-")[0] for char in letters)
    name, count = counts.most_common(1)[0]
    return name.title() if name != _LATIN and 2 * count > len(letters) else ""
