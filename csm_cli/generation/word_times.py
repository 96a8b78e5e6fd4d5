"""Word times: when each word of a text is spoken. A recognizer hears words; the text's own words take their times."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from csm_cli.audio.io import Audio
from csm_cli.generation.events import Segment, Utterance
from csm_cli.generation.take import LEVEL_SECONDS, SILENCE_LEVEL, Samples, rms_levels
from csm_cli.generation.verification import RecognizedWord, Recognizer, comparable_words, is_unspaced
from csm_cli.types import DEFAULT_LANGUAGE, TimedWord

_WINDOW_SECONDS = 27.0  # Whisper hears 30 s at a time, however little of that is speech
_GAP_SECONDS = 0.5  # of silence between segments in a window
_PAUSE_SECONDS = 0.05  # a shorter silence is part of a word, as before a "t"
_PAUSE_LEVEL = 0.02  # of the segment's loudest 10 ms
_LIKE = 0.5  # share of equal letters with which two words are the same one, misheard
_SPACED_WORD = re.compile(r"\S+")
_UNSPACED_WORD = re.compile(r"[^\W\d_]*[A-Za-z\u00c0-\u024f]+[^\w\s]*|\d+[^\w\s]*|\w[^\w\s]*")


def time_words(utterances: Sequence[Utterance], recognizer: Recognizer) -> tuple[Utterance, ...]:
    """The utterances with the times of all words in their segments; a recording is one segment.

    Raises:
        ModelError: as the recognizer.
    """
    timed = []
    segments = [
        each.segments or (Segment(each.turn.text, 0.0, each.audio.duration, len(each.codes)),) for each in utterances
    ]
    rate = utterances[0].audio.rate
    pieces = [
        each.audio.samples[round(segment.start * rate) : round(segment.end * rate)]
        for each, some in zip(utterances, segments, strict=True)
        for segment in some
    ]
    recognized = iter(zip(pieces, _recognize(pieces, rate, recognizer), strict=True))
    for each, some in zip(utterances, segments, strict=True):
        language = each.conversation.language
        timed.append(
            replace(each, segments=tuple(_timed(segment, *next(recognized), rate, language) for segment in some))
        )
    return tuple(timed)


def _recognize(pieces: Sequence[Samples], rate: int, recognizer: Recognizer) -> list[list[RecognizedWord]]:
    """The words in each piece, with times from its start. Short pieces are transcribed together, which is cheaper."""
    gap = np.zeros(round(_GAP_SECONDS * rate), np.float32)
    windows: list[list[int]] = []
    length = 0
    for index, piece in enumerate(pieces):
        length += len(gap) + len(piece)
        if not windows or length > _WINDOW_SECONDS * rate:
            windows.append([])
            length = len(gap) + len(piece)
        windows[-1].append(index)
    recognized: list[list[RecognizedWord]] = [[] for _ in pieces]
    for window in windows:
        lengths = [len(gap) + len(pieces[index]) for index in window]
        starts = [float(sum(lengths[:place])) / rate for place in range(len(window))]
        audio = np.concatenate([part for index in window for part in (gap, pieces[index])])
        for word in recognizer.words(Audio(audio, rate)):
            place = max(0, bisect_right(starts, (word.start + word.end) / 2) - 1)
            start = starts[place] + _GAP_SECONDS
            recognized[window[place]].append(RecognizedWord(word.text, word.start - start, word.end - start))
    return recognized


def _timed(
    segment: Segment, samples: Samples, recognized: Sequence[RecognizedWord], rate: int, language: str
) -> Segment:
    pauses, bounds = _find_pauses(samples, rate)
    first, last = bounds
    inside = [
        replace(word, start=min(max(word.start, first), last), end=min(max(word.end, first), last))
        for word in recognized
    ]
    recognized = [_without_pauses(word, pauses) for word in inside]
    words = align_words(segment.text, recognized, bounds, language)
    return replace(
        segment,
        words=tuple(replace(each, start=segment.start + each.start, end=segment.start + each.end) for each in words),
    )


def align_words(
    text: str, recognized: Sequence[RecognizedWord], bounds: tuple[float, float], language: str = DEFAULT_LANGUAGE
) -> list[TimedWord]:
    """The words of a text with the times of those recognized. bounds: where speech starts and ends, in seconds.

    A word that was not recognized lies between its neighbours, or where other words were recognized in its place. Where
    most words were not, the recognizer's times say nothing of the others, and all words are spread over the speech.
    """
    from rapidfuzz import fuzz

    written = split_words(text, language)
    if is_unspaced(language):
        recognized = [
            part for word in recognized for part in _spread(split_words(word.text, language), word.start, word.end)
        ]
    keys = [_key(word, language) for word in written]
    recognized_keys = [_key(word.text, language) for word in recognized]
    words: list[TimedWord] = []
    missing: list[str] = []  # written words since the last one with a time

    def add(timed: Sequence[TimedWord]) -> None:
        start = words[-1].end if words else bounds[0]
        words.extend(_unrecognized(_spread(missing, start, max(start, timed[0].start))))
        missing.clear()
        words.extend(timed)

    for block in _blocks(keys, recognized_keys):
        names, sounds = written[block.first : block.last], recognized[block.recognized_first : block.recognized_last]
        if not sounds:
            missing += names
        elif len(names) == len(sounds):
            for offset, (name, sound) in enumerate(zip(names, sounds, strict=True)):
                pair = keys[block.first + offset], recognized_keys[block.recognized_first + offset]
                is_same = fuzz.ratio(*pair) >= 100 * _LIKE
                add([TimedWord(name, sound.start, sound.end, is_same)])
        elif names:
            parts = _spread(names, sounds[0].start, sounds[-1].end)
            joined = [
                "".join(some) for some in (keys[block.first : block.last], recognized_keys[slice(*block.recognized)])
            ]
            is_same = joined[0] == joined[1]
            add([TimedWord(each.text, each.start, each.end, is_same) for each in parts])
    start = words[-1].end if words else bounds[0]
    words.extend(_unrecognized(_spread(missing, start, max(start, bounds[1]))))
    if 2 * sum(word.recognized for word in words) < len(words):
        return _unrecognized(_spread(written, *bounds))
    return _in_order(words)


def split_words(text: str, language: str = DEFAULT_LANGUAGE) -> list[str]:
    """The words of a text with their punctuation; characters in languages without spaces between words."""
    pattern = _UNSPACED_WORD if is_unspaced(language) else _SPACED_WORD
    return [word for word in pattern.findall(text) if any(map(str.isalnum, word))]


@dataclass(frozen=True)
class _WordBlock:
    """A run of written words [first, last), and the recognized ones in its place."""

    first: int
    last: int
    recognized_first: int
    recognized_last: int

    @property
    def recognized(self) -> tuple[int, int]:
        return self.recognized_first, self.recognized_last


def _blocks(written: Sequence[str], recognized: Sequence[str]) -> Iterator[_WordBlock]:
    """Equal words, and the runs of others between them."""
    from rapidfuzz.distance import Levenshtein

    done = recognized_done = 0
    for step in Levenshtein.opcodes(written, recognized):
        if step.tag != "equal":
            continue
        if step.src_start > done or step.dest_start > recognized_done:
            yield _WordBlock(done, step.src_start, recognized_done, step.dest_start)
        yield _WordBlock(step.src_start, step.src_end, step.dest_start, step.dest_end)
        done, recognized_done = step.src_end, step.dest_end
    if done < len(written) or recognized_done < len(recognized):
        yield _WordBlock(done, len(written), recognized_done, len(recognized))


@lru_cache(maxsize=10_000)
def _key(word: str, language: str) -> str:
    return "".join(comparable_words(word, language)) or word.casefold()


def _spread(words: Sequence[str], start: float, end: float) -> list[RecognizedWord]:
    """Words one after another, each as long as its share of the letters."""
    letters = [sum(map(str.isalnum, word)) or 1 for word in words]
    edges = start + (end - start) * np.cumsum([0, *letters]) / max(1, sum(letters))
    return [RecognizedWord(word, float(edges[index]), float(edges[index + 1])) for index, word in enumerate(words)]


def _unrecognized(words: Sequence[RecognizedWord]) -> list[TimedWord]:
    return [TimedWord(each.text, each.start, each.end, recognized=False) for each in words]


def _in_order(words: Sequence[TimedWord]) -> list[TimedWord]:
    """No word starts before the one above it, or ends after the next one starts."""
    ordered: list[TimedWord] = []
    for index, word in enumerate(words):
        start = max(word.start, ordered[-1].end if ordered else 0.0)
        following = words[index + 1].start if index + 1 < len(words) else word.end
        ordered.append(replace(word, start=start, end=max(start, min(word.end, max(following, start)))))
    return ordered


def _find_pauses(samples: Samples, rate: int) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """(start, end) of each pause in seconds, and where sound starts and ends."""
    levels = rms_levels(samples, round(LEVEL_SECONDS * rate))
    loud = np.flatnonzero(levels > max(SILENCE_LEVEL, _PAUSE_LEVEL * levels.max(initial=0.0)))
    if not len(loud):
        return [], (0.0, len(samples) / rate)
    edges = [(0, loud[0]), *zip(loud[:-1] + 1, loud[1:], strict=True), (loud[-1] + 1, len(levels))]
    pauses = [
        (float(first * LEVEL_SECONDS), float(last * LEVEL_SECONDS))
        for first, last in edges
        if (last - first) * LEVEL_SECONDS >= _PAUSE_SECONDS
    ]
    return pauses, (float(loud[0] * LEVEL_SECONDS), float((loud[-1] + 1) * LEVEL_SECONDS))


def _without_pauses(word: RecognizedWord, pauses: Sequence[tuple[float, float]]) -> RecognizedWord:
    """The word without a pause at its start or end: recognizers count the pause before a word as part of it."""
    start, end = word.start, word.end
    for first, last in pauses:
        if first <= start < last < end:
            start = last
        elif start < first < end <= last:
            end = first
        elif start < first and last < end:
            start, end = (last, end) if first - start < end - last else (start, first)
    return replace(word, start=start, end=end)
