"""What came of a dataset, added up: for a table, for JSON and as a picture."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csm_cli.data.clips import REASONS, ClipFindings, DroppedClip
from csm_cli.storage.files import write_atomically

_BIN_SECONDS = 0.5
_MOST_BARS = 120


class DatasetCounts:
    """Adds findings up. learned: clips kept that are not only heard; drops: all that was left out."""

    def __init__(self) -> None:
        self.clips = self.learned = 0
        self.seconds = 0.0
        self.drops: list[DroppedClip] = []
        self._speakers: Counter[int] = Counter()  # clips of each
        self._kept: Counter[int] = Counter()  # clips by length
        self._left: Counter[int] = Counter()

    def add(self, found: ClipFindings) -> None:
        self.clips += len(found.kept)
        self.learned += found.learned
        self.drops += found.drops
        self._left.update(int(drop.seconds / _BIN_SECONDS) for drop in found.drops if drop.seconds)
        for speaker, seconds in found.kept:
            self.seconds += seconds
            self._speakers[speaker] += 1
            self._kept[int(seconds / _BIN_SECONDS)] += 1

    @property
    def left_out(self) -> dict[str, tuple[int, float]]:
        """Clips and seconds left out for each reason there was."""
        counts = Counter(drop.reason for drop in self.drops)
        seconds: Counter[str] = Counter()
        for drop in self.drops:
            seconds[drop.reason] += drop.seconds  # type: ignore[assignment]  # a Counter adds floats as well
        return {reason: (counts[reason], float(seconds[reason])) for reason in REASONS if counts[reason]}

    def record(self) -> dict[str, Any]:
        """Everything, as one JSON object."""
        left = {reason: {"clips": clips, "hours": _hours(time)} for reason, (clips, time) in self.left_out.items()}
        return {
            "kept": {"clips": self.clips, "hours": _hours(self.seconds)},
            "left_out": left,
            "speakers": {str(speaker): count for speaker, count in sorted(self._speakers.items())},
            "drops": [asdict(drop) for drop in self.drops],
        }

    def save(self, folder: Path) -> None:
        """Writes `report.json`, the figures, and `dropped.jsonl`, a line for each clip left out.

        Raises:
            OutputRefused, OutputFailed: the folder cannot be written to, the disk is full.
        """
        figures = {key: value for key, value in self.record().items() if key != "drops"}
        lines = (json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in self.drops)
        write_atomically(folder / "report.json", json.dumps(figures, indent=1).encode())
        write_atomically(folder / "dropped.jsonl", "".join(lines).encode("utf-8", "surrogateescape"))

    def save_plot(self, path: Path) -> None:
        """Draws how long the clips are as a PNG; needs matplotlib, the extra "train".

        Raises:
            OutputRefused, OutputFailed: as `save`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axis = figure.subplots()
        last = min(2 * max([1, *self._kept]), _MOST_BARS)  # what is left out may be hours long
        heights = [[0] * (last + 1), [0] * (last + 1)]
        for height, counts in zip(heights, (self._kept, self._left), strict=True):
            for at, count in counts.items():
                height[min(at, last)] += count
        labels = [f"kept: {self.clips}, {_hours(self.seconds)} h", f"left out: {len(self.drops)}"]
        centres = [(at + 0.5) * _BIN_SECONDS for at in range(last + 1)]
        axis.bar(centres, heights[0], _BIN_SECONDS, label=labels[0])
        axis.bar(centres, heights[1], _BIN_SECONDS, bottom=heights[0], label=labels[1])
        axis.set(xlabel="seconds; in the last bar, and more", ylabel="clips")
        axis.legend(loc="upper right")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=80, format="png")
        write_atomically(path, picture.getvalue())


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 4)
