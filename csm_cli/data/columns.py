"""Columns of datasets: which one holds the audio, the words and the speaker, by its name or by what is in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csm_cli.errors import InputError

Role = Literal["audio", "text", "speaker", "id", "rate", "offset", "duration", "start", "end", "start_ms", "end_ms"]

# Names of each role's column, in any case; the first that a table has is used.
COLUMN_NAMES: dict[Role, tuple[str, ...]] = {
    "audio": (
        *("file_name", "audio_filepath", "audio", "audio_file_name", "path", "audio_path", "audio_file", "filename"),
        *("file", "file_path", "filepath", "wav", "wav_path", "wav_filename", "clip"),
    ),
    "text": ("text", "transcription", "transcript", "sentence", "utterance", "caption"),
    "speaker": (
        *("speaker_id", "speaker", "source", "client_id", "speaker_name", "spk", "voice", "character", "narrator"),
    ),
    "id": ("id", "custom_id"),
    "rate": ("sampling_rate", "sample_rate"),
    "offset": ("offset",),
    "duration": ("duration",),
    "start": ("start", "start_s", "start_time", "start_sec", "begin"),
    "end": ("end", "end_s", "end_time", "end_sec", "stop"),
    "start_ms": ("start_ms", "begin_ms"),
    "end_ms": ("end_ms", "stop_ms"),
}
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".aif", ".aiff", ".wma", ".mp4")

_SAMPLE_ROWS = 200  # rows of a table without column names that decide what its columns hold
# Labels that follow the text in lists of files, and name no speaker: emotions, languages, parts of a dataset, genders.
_OTHER_LABELS = frozenset(
    [
        *("neutral", "happy", "sad", "angry", "anger", "amused", "disgust", "disgusted", "sleepy"),
        *("sleepiness", "joy", "surprised", "surprise", "whisper", "whispering", "drunk", "calm", "fear"),
        *("fearful", "excited", "confused", "laughing", "default", "sadness", "narration", "conversational"),
        *("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko", "en-us", "en-gb", "en_us"),
        *("en_gb", "english", "german", "french", "spanish", "train", "dev", "test", "valid", "validation"),
        *("eval", "true", "false", "male", "female", "m", "f", "yes", "no"),
    ]
)
_PHONETIC = re.compile(r"[ɐ-ʯˈˌː]|\b[A-Z]{1,2}[0-2]\b")  # IPA, or vowels of ARPABET with their stress
_TOKEN = re.compile(r"\w+\.?")


@dataclass(frozen=True)
class ColumnChoice:
    """The user's choice of columns, by name, or by number from 1 in a table without column names; None: to be found."""

    text: str | None = None
    speaker: str | None = None
    audio: str | None = None

    def chosen(self) -> dict[Role, str]:
        chosen: dict[Role, str | None] = {"audio": self.audio, "text": self.text, "speaker": self.speaker}
        return {role: name for role, name in chosen.items() if name is not None}


def expected_columns(choice: ColumnChoice) -> str:
    """What a table's column names should be, for messages."""
    parts = [choice.audio or f"one of {', '.join(COLUMN_NAMES['audio'])}"]
    parts.append(choice.text or f"one of {', '.join(COLUMN_NAMES['text'])}")
    return " and ".join(parts)


def find_columns(names: Iterable[str], choice: ColumnChoice) -> dict[Role, str]:
    """The column of each role among `names`, as they are written there; a role without a column is missing."""
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.strip().casefold(), name)
    chosen = choice.chosen()
    found: dict[Role, str] = {}
    for role, usual in COLUMN_NAMES.items():
        for name in (chosen[role].strip().casefold(),) if role in chosen else usual:
            if name in folded:
                found[role] = folded[name]
                break
    return found


def guess_columns(place: str, rows: Sequence[Sequence[str]], known: set[int], choice: ColumnChoice) -> dict[Role, int]:
    """The column of each role in a table without column names, counted from 0.

    rows: the first rows' cells. known: columns whose cells name files that exist.

    Raises:
        InputError: what a column holds is unclear, or a chosen column is not there.
    """
    width = Counter(len(cells) for cells in rows).most_common(1)[0][0] if rows else 0
    full = [cells for cells in rows if len(cells) >= min(width, 2)][:_SAMPLE_ROWS]
    columns = [[cells[index].strip() if index < len(cells) else "" for cells in full] for index in range(width)]
    found: dict[Role, int] = {}
    for role, name in choice.chosen().items():
        if not name.isdecimal() or not 1 <= int(name) <= width:
            raise InputError(f"{place}: has no column names; --{role}-column takes a number from 1 to {width}")
        found[role] = int(name) - 1
    if "audio" not in found:
        found["audio"] = _audio_column(columns, known, set(found.values()))
    taken = set(found.values())
    others = [index for index in range(width) if index not in taken]
    free = [index for index in others if any(columns[index])] or others
    if "text" not in found:
        found["text"] = _text_column(place, rows[0], columns, free)
    free = [index for index in free if index != found["text"]]
    if "speaker" not in found and (speaker := _speaker_column(columns, found, free)) is not None:
        found["speaker"] = speaker
    return found


def spelled_column(rows: Sequence[Sequence[str]], roles: Mapping[Role, int]) -> int | None:
    """The column in which the words of the text are written out, as LJSpeech's third; None if there is none."""
    others = [index for index in range(max(map(len, rows), default=0)) if index not in roles.values()]
    for index in others:
        pairs = [(cells[roles["text"]], cells[index]) for cells in rows if len(cells) > max(index, roles["text"])]
        pairs = [(text, other) for text, other in pairs if other.strip()]
        if pairs and 2 * sum(spells_out(text, other) for text, other in pairs) > len(pairs):
            return index
    return None


def spells_out(text: str, other: str) -> bool:
    """Whether `other` has the words of `text`, with numbers and abbreviations written out."""
    words, others = ({token.casefold() for token in _TOKEN.findall(each)} for each in (text, other))
    words = {word for word in words if len(word) > 2 and word.isalpha()}  # without what a dot ends, as "Dr."
    others = {word.removesuffix(".") for word in others}
    if not words:  # only numbers, abbreviations or short words
        return not any(char.isdigit() for char in other) and (
            text.strip().casefold() == other.strip().casefold() or len(other.split()) > len(text.split())
        )
    return 2 * len(words & others) >= len(words)


def _audio_column(columns: Sequence[Sequence[str]], known: set[int], taken: set[int]) -> int:
    """The column of file names, else of names that exist as files, else the first of single words that all differ."""
    free = [index for index in range(len(columns)) if index not in taken]
    for index in free:
        if sum(cell.lower().endswith(AUDIO_SUFFIXES) for cell in columns[index]) * 2 > len(columns[index]):
            return index
    for index in free:
        if index in known:
            return index
    for index in free:
        cells = columns[index]
        if len(set(cells)) == len(cells) and not any(" " in cell for cell in cells):
            return index
    return free[0] if free else 0


def _text_column(place: str, example: Sequence[str], columns: Sequence[Sequence[str]], free: Sequence[int]) -> int:
    cells = {index: [cell for cell in columns[index] if cell] for index in free}

    def most(index: int, has: Callable[[str], object], share: float = 0.5) -> bool:
        return sum(bool(has(cell)) for cell in cells[index]) > share * len(cells[index])

    named = [index for index in free if most(index, lambda cell: any(char.isalpha() for char in cell))]
    wordy = [index for index in named if most(index, lambda cell: " " in cell, 0.25)]
    wordy = [index for index in wordy if not most(index, _PHONETIC.search)] or wordy
    if len(several := wordy or named) > 1:
        first, *others = several
        pairs = [[pair for pair in zip(columns[first], columns[other], strict=True) if pair[1]] for other in others]
        if all(2 * sum(spells_out(*pair) for pair in each) > len(each) for each in pairs):
            return first
        varied = [index for index in wordy if len(cells[index]) < 4 or 2 * len({*cells[index]}) > len(cells[index])]
        wordy = varied or wordy
    if len(wordy) == 1:
        return wordy[0]
    if not wordy and len(named) == 1:
        return named[0]
    if len(free) == 1:
        return free[0]
    shown = " | ".join(cell[:40] for cell in example)
    raise InputError(
        f"{place}: has no column names, and it is unclear which column has the words: {shown}; --text-column N"
    )


def _speaker_column(columns: Sequence[Sequence[str]], found: Mapping[Role, int], free: Sequence[int]) -> int | None:
    for index in free:
        cells = [cell for cell in columns[index] if cell]
        between = found["audio"] < index < found["text"]  # as in the lists of VITS and Piper
        if all(cell.isdecimal() for cell in cells):
            if between:
                return index
        elif all(cell.casefold() in _OTHER_LABELS for cell in cells):
            continue
        elif not any(" " in cell or _PHONETIC.search(cell) for cell in cells) or (
            len(cells) >= 4 and 2 * len(set(cells)) <= len(cells)
        ):
            return index
    return None


def find_audio(folder: Path, name: str, folders: Sequence[str]) -> Path | None:
    """The file that a row names, in `folder` or in one of its `folders`, with or without suffix; None if missing."""
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    suffixed = name.lower().endswith(AUDIO_SUFFIXES)
    for each in names:
        for place in ("", *folders):
            base = os.path.join(folder, place, os.path.expanduser(each))  # noqa: PTH111, PTH118, any string
            for suffix in ("",) if suffixed else ("", *AUDIO_SUFFIXES):
                if os.path.isfile(base + suffix):  # noqa: PTH113
                    return Path(base + suffix)
    return None
