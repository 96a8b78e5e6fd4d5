"""Splits long texts into chunks that are generated one after another, and respells words. No torch here."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from csm_cli.script.lexicon import apply_lexicon
from csm_cli.script.spoken_text import PAUSE, is_speakable
from csm_cli.types import DEFAULT_CHUNK_CHARS, DEFAULT_LANGUAGE, Conversation

PARAGRAPH_PAUSE_SECONDS = 0.7  # at an empty line of a text
MAX_SENTENCE_CHUNKS = 2  # a sentence longer than so many chunks is split at its clauses

_CLAUSE_END = re.compile(r"(?<=[,;:\u2014\u2013]\s)|(?<=[\u3001\uff0c\uff1b\uff1a])")
PARAGRAPH_END = re.compile(r"\n\s*\n")
_JOINT = re.compile(rf"{PAUSE.pattern}|{PARAGRAPH_END.pattern}")
_BEFORE_NUMBER = re.compile(
    r"\b(?:approx|est|max|min|ca|circa|abs|sec|ver|par|art|nos?|pp?|vol|ch|figs?|eq|tel|ext|lv)\.\s*$", re.I
)
_WIDE_CHARS = 3  # a Chinese, Japanese or Korean character takes as long to say as so many Latin ones


@dataclass(frozen=True)
class SpeechPauses:
    """Pauses that a text asks for, in seconds. first: before it. after: each chunk; None where it asks for none."""

    first: float = 0.0
    after: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, text: str, chunks: Sequence[str]) -> SpeechPauses:
        """The pauses of a text whose chunks are known."""
        first, pieces = split_pauses(text)
        after: list[float | None] = [None] * len(chunks)
        index = 0
        for piece, pause in pieces:
            letters = sum(map(str.isalnum, piece))
            while index < len(chunks) and letters > 0:
                letters -= sum(map(str.isalnum, chunks[index]))
                index += 1
            if index:
                after[index - 1] = pause
        return cls(first, tuple(after))

    @property
    def last(self) -> float:
        """After the last chunk."""
        return (self.after[-1] or 0.0) if self.after else 0.0

    @property
    def total(self) -> float:
        return self.first + sum(filter(None, self.after))

    def after_chunk(self, index: int) -> float | None:
        return self.after[index] if index < len(self.after) else None


def split_pauses(text: str) -> tuple[float, list[tuple[str, float | None]]]:
    """The pause before a text, and its pieces, each with the pause after it: `[pause 0.5]`, or an empty line.

    Written pauses in a row are added up, and count over the empty lines around them. The pause after the last piece is
    None if none is written.
    """
    first, pieces = 0.0, list[tuple[str, float | None]]()
    written, empty_line, prefix, position = None, False, "", 0  # since the last words
    for match in (*_JOINT.finditer(text), None):
        part = text[position : match.start() if match else len(text)].strip()
        if is_speakable(part):
            if pieces:
                pause = PARAGRAPH_PAUSE_SECONDS if written is None and empty_line else written
                pieces[-1] = pieces[-1][0], pause
            else:
                first = written or 0.0
            pieces.append((f"{prefix} {part}".strip(), None))
            written, empty_line, prefix = None, False, ""
        elif pieces and part:
            pieces[-1] = f"{pieces[-1][0]} {part}", pieces[-1][1]
        else:
            prefix = f"{prefix} {part}".strip()
        if match:
            position = match.end()
            empty_line = empty_line or match[1] is None
            written = (written or 0.0) + float(match[1]) if match[1] else written
    if pieces and written is not None:
        pieces[-1] = pieces[-1][0], written
    return first, pieces


def split_speech(
    text: str, chunk_chars: int = DEFAULT_CHUNK_CHARS, language: str = DEFAULT_LANGUAGE
) -> tuple[str, ...]:
    """The chunks of a text, split at its pauses and as by `split_text`; the pauses themselves are not part of them."""
    _, pieces = split_pauses(text)
    if len(pieces) < 2 and "[pause" not in text:
        return split_text(text, chunk_chars, language)
    return tuple(chunk for piece, _ in pieces for chunk in split_text(piece, chunk_chars, language))


def spoken_length(text: str) -> int:
    """Characters, weighted by how long they take to say."""
    if text.isascii():
        return len(text)
    return sum(_WIDE_CHARS if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def split_text(text: str, chunk_chars: int = DEFAULT_CHUNK_CHARS, language: str = DEFAULT_LANGUAGE) -> tuple[str, ...]:
    """Splits a text into chunks of whole sentences, about `chunk_chars` long; 0 keeps the text whole.

    A sentence longer than two chunks is split at its clauses, a clause longer than that between words. language: a code
    such as en; it decides after which abbreviations and numbers a dot ends no sentence.
    """
    if not chunk_chars or spoken_length(text) <= chunk_chars:
        return (text,)
    try:
        chunks = [
            chunk
            for paragraph in PARAGRAPH_END.split(text)
            for chunk in _merge(_sentences(paragraph, chunk_chars, language), chunk_chars)
        ]
    except UnicodeEncodeError:  # a lone surrogate; reported where the text is tokenized
        return (text,)
    merged: list[str] = []
    for chunk in filter(None, map(str.strip, chunks)):
        # a chunk without a letter or digit, such as a lone bracket, cannot be spoken alone
        if merged and not (_is_speakable(chunk) and _is_speakable(merged[-1])):
            merged[-1] += f" {chunk}"
        else:
            merged.append(chunk)
    return tuple(merged)


def split_sentences(text: str, language: str = DEFAULT_LANGUAGE) -> list[str]:
    """The sentences of a paragraph, each with the space after it."""
    from sentencex import segment

    sentences: list[str] = []
    for part in segment(language, text):
        # sentencex ends a sentence after abbreviations that it does not know
        continues = sentences and (part[:1].islower() or (part[:1].isdigit() and _BEFORE_NUMBER.search(sentences[-1])))
        if continues and not sentences[-1].rstrip().endswith(("!", "?", "\u2026")):
            sentences[-1] += part
        else:
            sentences.append(part)
    return sentences


def _sentences(text: str, chunk_chars: int, language: str) -> Iterable[str]:
    """Sentences with the space after them; those that are too long in pieces."""
    for sentence in split_sentences(text, language):
        if spoken_length(sentence) <= MAX_SENTENCE_CHUNKS * chunk_chars:
            yield sentence
        else:
            yield from _merge(_clauses(sentence, chunk_chars), chunk_chars)


def _clauses(sentence: str, chunk_chars: int) -> Iterable[str]:
    for clause in _CLAUSE_END.split(sentence):
        if spoken_length(clause) <= MAX_SENTENCE_CHUNKS * chunk_chars:
            yield clause
        else:
            width = max(1, chunk_chars * len(clause) // spoken_length(clause))
            yield from textwrap.wrap(
                clause,
                width,
                expand_tabs=False,
                replace_whitespace=False,
                drop_whitespace=False,
                break_on_hyphens=False,
            )


def _merge(pieces: Iterable[str], chunk_chars: int) -> list[str]:
    """Joins neighbours as long as they fit into one chunk."""
    merged: list[str] = []
    for piece in pieces:
        if merged and spoken_length((merged[-1] + piece).strip()) <= chunk_chars:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _is_speakable(text: str) -> bool:
    return any(char.isalnum() for char in text)


def spell(text: str, conversation: Conversation) -> str:
    """A text as the model reads it: with the lexicon of its conversation, and normalized if it asks for that.

    Raises:
        UsageError: the rules of normalization are not installed.
    """
    if PAUSE.search(text):  # which stay as they are
        pauses = [match[0] for match in PAUSE.finditer(text)]
        words = [spell(each, conversation) for each in PAUSE.split(text)[::2]]
        return "".join(part for pair in zip(words, (*pauses, ""), strict=True) for part in pair)
    spelled = apply_lexicon(text, conversation.lexicon)
    if not conversation.normalize or not spelled.strip():
        return spelled
    from csm_cli.generation.normalization import normalize_text

    return normalize_text(spelled)
