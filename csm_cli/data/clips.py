"""What a dataset holds before any of its sound is read. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from csm_cli.types import Recording

_log = logging.getLogger(__name__)

# Why something is left out, in the order they are found in.
REASONS = (
    "broken row",
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
    "no room",
)


@dataclass(frozen=True)
class TrainingClip:
    """Recorded speech and its words. learned: False where it is heard only, as context.

    place: where the dataset tells of it, as `file:line`. duration, rate: what it says of the file, in seconds and
    samples per second; None where it says nothing. row: where the recording is a Parquet file.
    """

    speaker: int
    text: str
    recording: Recording | None
    place: str
    learned: bool = True
    duration: float | None = None
    rate: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class TrainingConversation:
    """Clips in the order they were spoken; a dataset of single clips is one of talks of one clip."""

    id: str
    clips: tuple[TrainingClip, ...]


@dataclass(frozen=True)
class DroppedClip:
    """Something left out; `reason` is one of REASONS, `seconds` what is known of its length."""

    id: str
    place: str
    reason: str
    detail: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}: {self.detail}"


DatasetEntry = list[TrainingConversation | DroppedClip]
"""What is worked on, and done again, at once."""


@dataclass
class ClipFindings:
    """What became of a piece's clips. kept: speaker and seconds of each; learned: how many are not only heard."""

    kept: list[tuple[int, float]] = field(default_factory=list)
    drops: list[DroppedClip] = field(default_factory=list)
    learned: int = 0

    def note(self, clip: TrainingClip, outcome: DroppedClip | float) -> None:
        """A clip was left out, or kept with so many seconds."""
        if isinstance(outcome, DroppedClip):
            self.drops.append(outcome)
        else:
            self.kept.append((clip.speaker, round(outcome, 3)))
            self.learned += clip.learned

    def record(self) -> dict[str, Any]:
        """As JSON holds it; `Findings.of` reads it back."""
        return {"kept": self.kept, "drops": [asdict(drop) for drop in self.drops], "learned": self.learned}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ClipFindings:
        kept = [(speaker, seconds) for speaker, seconds in record["kept"]]
        learned = record.get("learned", len(kept))  # an older shard does not say
        return cls(kept, [DroppedClip(**each) for each in record["drops"]], learned)


@dataclass
class SpeakerNumbers:
    """Numbers for speakers: a number stands for itself, names get the free ones in the order they come.

    unnamed: the number where a dataset names nobody. names: the names met so far.
    """

    unnamed: int = 0
    names: dict[str, int] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)
    _named: set[int] = field(default_factory=set)

    def number(self, label: str | None) -> int:
        if label is None:
            return self.unnamed
        if label.isdecimal() and len(label) < 10:
            return self._itself(int(label))
        if label not in self.names:
            free = next(number for number in range(len(self._taken) + 1) if number not in self._taken)
            self.names[label] = free
            self._taken.add(free)
            self._named.add(free)
        return self.names[label]

    def _itself(self, number: int) -> int:
        if number not in self._taken:
            self._taken.add(number)
        elif number in self._named:
            self._named.remove(number)  # said once
            _log.warning("%d is a speaker's number, and stands for one with a name, too; number or name all", number)
        return number
