"""Text that arrives in pieces, such as from a language model, as whole sentences. No torch here."""

from __future__ import annotations

import re

from csm_cli.generation.chunking import (
    MAX_SENTENCE_CHUNKS,
    PARAGRAPH_END,
    split_sentences,
    split_text,
    spoken_length,
)
from csm_cli.script.spoken_text import is_speakable
from csm_cli.types import DEFAULT_CHUNK_CHARS, DEFAULT_LANGUAGE

_WINDOW_CHARS = 2000  # that are searched for the end of a sentence at a time
# Abbreviations are told from ends of sentences by the whole word after them; a Chinese character is one.
_WORD = re.compile(r"\s*(?:\S+\s|\S{20}|[\u2e80-\uffff])")


class SentenceStream:
    """Collects text and returns each sentence when it is complete: after a word of the next one, or a blank line.

    Sentences of prose do not depend on how the text was cut into pieces. One longer than two chunks is returned in
    pieces, as by `split_text`, before its end is known, so that little text is held however long it is. A piece without
    anything to speak, such as a line of dashes, is returned with the sentence after it.
    """

    def __init__(self, language: str = DEFAULT_LANGUAGE, chunk_chars: int = DEFAULT_CHUNK_CHARS) -> None:
        self._language, self._chunk_chars = language, chunk_chars or DEFAULT_CHUNK_CHARS
        self._text = ""  # not returned yet
        self._unspeakable = ""  # before it

    @property
    def pending(self) -> str:
        """Text that was not returned yet."""
        return self._unspeakable + self._text

    def push(self, text: str) -> list[str]:
        """The sentences that more text completes, without space around them."""
        self._text += text
        found: list[str] = []
        while sentence := self._next_sentence():
            found += self._speakable(sentence)
        return found

    def finish(self) -> list[str]:
        """The rest, whose end is the end of the text; the next text begins a new sentence."""
        found = self.push("\n\n")
        self._text = self._unspeakable = ""
        return found

    def _next_sentence(self) -> str:
        """Takes the first sentence, or a piece of one that is too long; empty if none is complete."""
        self._text = self._text.lstrip()
        end = PARAGRAPH_END.search(self._text)
        paragraph = self._text[: end.start()] if end else self._text
        sentences = split_sentences(paragraph[:_WINDOW_CHARS], self._language)
        if len(sentences) > 1 and (end or _WORD.match(paragraph, len(sentences[0]))):
            self._text = self._text[len(sentences[0]) :]
            return sentences[0]
        if spoken_length(paragraph) > MAX_SENTENCE_CHUNKS * self._chunk_chars:
            piece = split_text(paragraph[:_WINDOW_CHARS], self._chunk_chars, self._language)[0]
            # counted without space, which a piece may not have as the text has it
            taken = re.match(rf"(?:\s*\S){{{sum(map(len, piece.split()))}}}", self._text)
            assert taken, piece
            self._text = self._text[taken.end() :]
            return piece
        if end:
            self._text = self._text[end.end() :]
            return paragraph
        return ""

    def _speakable(self, sentence: str) -> list[str]:
        """The sentence in pieces that can be spoken, with what came before and cannot."""
        found: list[str] = []
        for piece in split_text(sentence, self._chunk_chars, self._language):
            whole = f"{self._unspeakable} {piece}".strip()
            if is_speakable(whole):
                found.append(whole)
                whole = ""
            self._unspeakable = whole[-self._chunk_chars :]
        return found
