"""Datasets before their audio is read: conversations of clips, what was dropped and why, speaker numbers. No torch."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csm_cli.storage.files import write_atomically
from csm_cli.types import Recording

_log = logging.getLogger(__name__)

# Reasons to drop a clip, in the order of the checks.
REASONS = (
    "invalid row",
    "duplicate id",
    "no text",
    "no audio",
    "unreadable",
    "wrong rate",
    "wrong duration",
    "too short",
    "too long",
    "clipping",
    "silence",
    "too much text",
    "too little text",
    "exceeds context",
)
_BIN_SECONDS = 0.5
_MAX_BINS = 120


@dataclass(frozen=True)
class TrainingClip:
    """Recorded speech with its transcript. trained: False for a clip that is context only.

    place: of the clip in the dataset, as `file:line`. duration (seconds), rate (samples per second): as the dataset
    states them, or None. row: of the recording in a Parquet or tar file, from 1. codec: fingerprint of the codec whose
    codes are saved in that row, empty for none; frames: the clip's first and last frame of them, the last excluded.
    """

    speaker: int
    text: str
    recording: Recording | None
    place: str
    trained: bool = True
    duration: float | None = None
    rate: int | None = None
    row: int | None = None
    codec: str = ""
    frames: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class TrainingConversation:
    """Clips in spoken order; a dataset of single clips has conversations of one clip."""

    id: str
    clips: tuple[TrainingClip, ...]


@dataclass(frozen=True)
class DroppedClip:
    """A clip that is not used. reason: one of REASONS; seconds: its length where known."""

    id: str
    place: str
    reason: str
    detail: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}: {self.detail}"


DatasetItem = TrainingConversation | DroppedClip
DatasetChunk = list[DatasetItem]
"""Items that are processed together; an interrupted chunk is repeated as a whole."""


@dataclass
class ChunkResult:
    """Result of a chunk. usable: speaker and seconds of each usable clip; trained: how many are not only context.

    warnings: of usable clips, their kinds and the lines for the user. reused: clips whose saved codes were used.
    """

    usable: list[tuple[int, float]] = field(default_factory=list)
    dropped: list[DroppedClip] = field(default_factory=list)
    trained: int = 0
    warnings: list[tuple[str, str]] = field(default_factory=list)
    reused: int = 0

    def add(self, clip: TrainingClip, outcome: DroppedClip | float) -> None:
        """outcome: the dropped clip, or the seconds of a usable one."""
        if isinstance(outcome, DroppedClip):
            self.dropped.append(outcome)
        else:
            self.usable.append((clip.speaker, round(outcome, 3)))
            self.trained += clip.trained

    def warn(self, clip: TrainingClip, warnings: Mapping[str, str]) -> None:
        """warnings: by kind, as of `clip_warnings`."""
        name = clip.recording.path if clip.recording else "audio"
        self.warnings += [(kind, f"{clip.place}: {name}: {text}") for kind, text in warnings.items()]

    def to_json(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "dropped": [asdict(clip) for clip in self.dropped],
            "trained": self.trained,
            "warnings": self.warnings,
            "reused": self.reused,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ChunkResult:
        usable = [(speaker, seconds) for speaker, seconds in record["usable"]]
        warnings = [(kind, line) for kind, line in record.get("warnings", ())]
        dropped = [DroppedClip(**each) for each in record["dropped"]]
        return cls(usable, dropped, record["trained"], warnings, record.get("reused", 0))


@dataclass
class SpeakerNumbers:
    """Assigns speaker numbers: a numeric label keeps its number, names get free numbers in order of appearance.

    default: number of clips without a speaker. names: names so far.
    """

    default: int = 0
    names: dict[str, int] = field(default_factory=dict)
    _used: set[int] = field(default_factory=set)
    _named: set[int] = field(default_factory=set)
    _next: int = 0  # all numbers below are taken

    def number(self, label: str | None) -> int:
        if label is None:
            return self.default
        if label.isdecimal() and len(label) < 10:
            number = int(label)
            if number not in self._used:
                self._used.add(number)
                if number in self._named:
                    _log.warning("speaker number %d was already assigned to a name; use only numbers or names", number)
            return number
        if label not in self.names:
            while self._next in self._used or self._next in self._named:
                self._next += 1
            self.names[label] = self._next
            self._named.add(self._next)
        return self.names[label]


class DatasetCounts:
    """Totals over chunks. trained: usable clips that are not only context; reused: those with saved codes that fit."""

    def __init__(self) -> None:
        self.clips = self.trained = self.reused = 0
        self.seconds = 0.0
        self.dropped: list[DroppedClip] = []
        self.warnings: Counter[str] = Counter()  # usable clips by what is wrong with them
        self._speakers: Counter[int] = Counter()  # clips of each
        self._usable_bins: Counter[int] = Counter()  # clips by duration
        self._dropped_bins: Counter[int] = Counter()

    def add(self, result: ChunkResult) -> None:
        self.clips += len(result.usable)
        self.trained += result.trained
        self.reused += result.reused
        self.dropped += result.dropped
        self.warnings.update(kind for kind, _ in result.warnings)
        self._dropped_bins.update(int(clip.seconds / _BIN_SECONDS) for clip in result.dropped if clip.seconds)
        for speaker, seconds in result.usable:
            self.seconds += seconds
            self._speakers[speaker] += 1
            self._usable_bins[int(seconds / _BIN_SECONDS)] += 1

    @property
    def by_reason(self) -> dict[str, tuple[int, float]]:
        """Dropped clips and their seconds for each reason that occurred, in the order of REASONS."""
        by_reason = {reason: [clip.seconds for clip in self.dropped if clip.reason == reason] for reason in REASONS}
        return {reason: (len(seconds), sum(seconds)) for reason, seconds in by_reason.items() if seconds}

    def to_json(self) -> dict[str, Any]:
        return {
            "usable": {"clips": self.clips, "hours": _hours(self.seconds)},
            "saved_codes_used": self.reused,
            "dropped": {
                reason: {"clips": clips, "hours": _hours(seconds)}
                for reason, (clips, seconds) in self.by_reason.items()
            },
            "warnings": dict(sorted(self.warnings.items())),
            "speakers": {str(speaker): count for speaker, count in sorted(self._speakers.items())},
            "dropped_clips": [asdict(clip) for clip in self.dropped],
        }

    def save(self, folder: Path) -> None:
        """Writes `report.json` with the totals and `dropped.jsonl` with a line for each dropped clip.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written to, the disk is full.
        """
        totals = {name: value for name, value in self.to_json().items() if name != "dropped_clips"}
        lines = (json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in self.dropped)
        write_atomically(folder / "report.json", json.dumps(totals, indent=1).encode())
        write_atomically(folder / "dropped.jsonl", "".join(lines).encode("utf-8", "surrogateescape"))

    def save_plot(self, path: Path) -> None:
        """Plots a histogram of clip durations as PNG; needs matplotlib, from the extra "train".

        Raises:
            OutputRefused, OutputFailed: as `save`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axis = figure.subplots()
        last = min(2 * max([1, *self._usable_bins]), _MAX_BINS)  # dropped clips may be hours long
        usable, dropped = [0] * (last + 1), [0] * (last + 1)
        for heights, counts in ((usable, self._usable_bins), (dropped, self._dropped_bins)):
            for index, count in counts.items():
                heights[min(index, last)] += count
        centres = [(index + 0.5) * _BIN_SECONDS for index in range(last + 1)]
        axis.bar(centres, usable, _BIN_SECONDS, label=f"usable: {self.clips}, {_hours(self.seconds)} h")
        axis.bar(centres, dropped, _BIN_SECONDS, bottom=usable, label=f"dropped: {len(self.dropped)}")
        axis.set(xlabel="seconds (last bar: or longer)", ylabel="clips")
        axis.legend(loc="upper right")
        image = io.BytesIO()
        figure.savefig(image, dpi=80, format="png")
        write_atomically(path, image.getvalue())


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 4)
