"""Lexicons: words and how each is spelled for the model, read from YAML, JSON or a table, and applied to texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from csm_cli.errors import ScriptInvalid
from csm_cli.script.cells import csv_cells, separator_of, table_rows
from csm_cli.script.files import AudioLookup, read_text
from csm_cli.script.parsers import parse_json, parse_yaml
from csm_cli.script.source import INVALID, Source, quoted, text_problem

MAX_ENTRIES = 100_000
_SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")
_DELIMITERS = ("\t", ";", "|", ",", "=")
# Names that people give to the two columns; a first row of two of them is no entry.
_HEADER_NAMES = {
    "word",
    "words",
    "written",
    "term",
    "name",
    "grapheme",
    "graphemes",
    "text",
    "from",
    "lemma",
    "original",
}
_HEADER_NAMES |= {"spelling", "spelled", "spoken", "alias", "say", "respelling", "pronunciation", "replacement", "to"}
# Scripts that are written without spaces, in which a word may begin or end anywhere.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
# No word ends before "'t" of don't or "'B" of O'Brien, but before a possessive or a short verb: Nguyen's, Nguyen'll.
_WORD_START = r"(?<!\w)(?<![A-Z]['\u2019])(?<!\w\w['\u2019])"
_WORD_END = r"(?!\w)(?!['\u2019](?!(?:s|d|m|ll|ve|re)\b)\w)"


def read_lexicon(path: Path | str) -> dict[str, str]:
    """The entries of a lexicon: YAML or JSON (`Nguyen: win`), or a table with a word and its spelling in each row.

    A table may be separated by tabs, commas, semicolons, bars or equals signs, and have a header.

    Raises:
        ScriptInvalid: with every entry that is empty, repeated or not two texts, and its line.
    """
    name = str(path)
    suffix = Path(name).suffix.lower()
    text = read_text(path)
    source = Source(name, AudioLookup(Path(name).parent))
    if suffix not in _SUFFIXES:
        source.add_error((), f"a lexicon is one of {', '.join(_SUFFIXES)}")
        raise ScriptInvalid(source.diagnostics)
    entries = (
        _mapping_entries(text, source, suffix) if suffix in _SUFFIXES[:3] else _table_entries(text, source, suffix)
    )
    lexicon: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, word, spelling in entries:
        word = " ".join(unicodedata.normalize("NFC", word).split())
        spelling = " ".join(unicodedata.normalize("NFC", spelling).split())
        problem = ""
        if not word or not spelling:
            problem = f"{quoted(spelling)} has no word" if spelling else f"{quoted(word)} has no spelling"
        elif word in lexicon:
            problem = f"{quoted(word)} is in line {lines[word]} too; keep one"
        elif not any(char.isalnum() for char in word):
            problem = f"{quoted(word)} has no letter or digit"
        elif len(lexicon) >= MAX_ENTRIES:
            problem = f"one entry too many; at most {MAX_ENTRIES:,} are possible"
        else:
            problem = text_problem(word) or text_problem(spelling)
        if problem:
            source.add_error_at((line, 1), (), problem)
            if len(lexicon) >= MAX_ENTRIES:
                break
            continue
        lexicon[word], lines[word] = spelling, line
    if not lexicon and not source.diagnostics:
        source.add_error((), "has no entries; write lines such as Nguyen: win")
    if source.diagnostics:
        raise ScriptInvalid(source.diagnostics)
    return lexicon


def _mapping_entries(text: str, source: Source, suffix: str) -> Iterator[tuple[int, str, str]]:
    expected = "lines such as Nguyen: win"
    source.data = parse_json(text, source) if suffix == ".json" else parse_yaml(text, source, expected)
    if isinstance(source.data, Mapping) and set(source.data) == {"lexicon"}:
        source.data = source.data["lexicon"]
        prefix: tuple[str | int, ...] = ("lexicon",)
    else:
        prefix = ()
    if not isinstance(source.data, Mapping):
        if source.data is not INVALID and not source.diagnostics:
            source.add_error((), f"expected {expected}, got {quoted(source.data)}")
        return
    for word, spelling in source.data.items():
        line = source.key_locations.get((*prefix, word), (0, 0))[0]
        if isinstance(spelling, Mapping | list):
            source.add_error_at((line, 1), (), f"expected a spelling of {quoted(word)}, got {quoted(spelling)}")
        else:
            yield line, str(word), "" if spelling is None else str(spelling)


def _table_entries(text: str, source: Source, suffix: str) -> Iterator[tuple[int, str, str]]:
    lines = text.splitlines(keepends=True)
    first = 0
    while first < len(lines) and (not lines[first].strip() or lines[first].lstrip().startswith("#")):
        first += 1
    declared = separator_of(lines[first]) if first < len(lines) else None
    usual = {".tsv": "\t", ".csv": ","}.get(suffix)
    sample = [line for line in lines[first:] if line.strip() and not line.startswith("#")][:50]
    delimiter = declared or max(
        sorted(_DELIMITERS, key=lambda each: each != usual),
        key=lambda each: sum(len(csv_cells(line, each)) == 2 for line in sample),
    )
    blank = ["\n" if line.lstrip().startswith("#") else line for line in lines]
    is_first = True
    for number, cells in table_rows(blank if not declared else ["\n", *blank[1:]], delimiter):
        if isinstance(cells, str):
            source.add_error_at((number, 1), (), cells)
            return
        while len(cells) > 2 and not cells[-1].strip():
            cells = cells[:-1]
        names = [cell.strip().casefold() for cell in cells]
        if is_first and len(cells) >= 2 and set(names[:2]) <= _HEADER_NAMES:
            is_first = False
            continue
        is_first = False
        if len(cells) != 2:
            problem = f"expected a word and its spelling, got {len(cells)} cell{'' if len(cells) == 1 else 's'}"
            source.add_error_at((number, 1), (), f"{problem}; put cells with {delimiter!r} in double quotes")
            continue
        yield number, cells[0], cells[1]


def merge_lexicons(lower: Mapping[str, str], upper: Mapping[str, str]) -> dict[str, str]:
    """The entries of both; of words that differ at most in case, those of `upper` alone."""
    known = {word.casefold() for word in upper}
    return {**{word: spelling for word, spelling in lower.items() if word.casefold() not in known}, **upper}


def apply_lexicon(text: str, lexicon: Mapping[str, str]) -> str:
    """A text with its words respelled; see `find_words`."""
    parts: list[str] = []
    end = 0
    for start, stop, spelling in find_words(text, lexicon):
        parts += [text[end:start], spelling]
        end = stop
    return "".join([*parts, text[end:]])


def find_words(text: str, lexicon: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Where words of a lexicon are in a text: start, end and spelling, in order.

    Only whole words are found, possessives (Nguyen's) and parts of compounds with a hyphen included; a space of an
    entry is any space of the text. Case is ignored, unless entries differ in nothing else: those are found as they are
    written. Of entries that begin at one place the longest counts; a spelling is not replaced again.
    """
    if not lexicon:
        return []
    entries = _entries(tuple(lexicon.items()))
    folded = " ".join(text.casefold().split())
    words = sorted((word for word in entries if word in folded), key=len, reverse=True)
    if not words:
        return []
    pattern = _pattern(tuple(spelled for word in words for spelled in entries[word]))
    found = []
    for match in pattern.finditer(text):
        written = " ".join(match[0].split())
        own = entries.get(written.casefold(), {})
        spelling = next(iter(own.values())) if len(own) == 1 else own.get(written)
        continues = unicodedata.category(text[match.end()])[0] == "M" if match.end() < len(text) else False
        if spelling is not None and not continues:  # a mark, such as a vowel sign, is part of the word
            found.append((*match.span(), spelling))
    return found


@lru_cache(maxsize=8)
def _entries(items: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
    """Spellings by word as written, by word without case."""
    entries: dict[str, dict[str, str]] = {}
    for word, spelling in items:
        written = " ".join(unicodedata.normalize("NFC", word).split())
        entries.setdefault(written.casefold(), {})[written] = spelling
    return entries


@lru_cache(maxsize=256)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_word_pattern, words)), re.IGNORECASE)


def _word_pattern(word: str) -> str:
    inner = r"\s+".join(map(re.escape, word.split()))
    start = "" if _UNSPACED.match(word[0]) else _WORD_START.replace("[A-Z]", "(?-i:[A-Z])")
    return f"{start}{inner}{'' if _UNSPACED.match(word[-1]) else _WORD_END}"
