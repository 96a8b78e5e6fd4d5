"""What training leaves behind on the way: figures, their curves, and states a kill cannot break."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_NOT_FIGURES = {"step", "split", "time"}


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save that a kill cannot leave half-written."""
    import torch

    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def report(folder: Path, step: int, split: str, figures: Mapping[str, float]) -> None:
    """Log the figures and append them to `folder/history.jsonl`."""
    shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
    _LOG.info("%s %d %s: %s", folder.name, step, split, shown)
    row = {"step": step, "split": split, "time": round(time.time()), **figures}
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def plot_history(folder: Path) -> None:
    """Draw every figure of `folder/history.jsonl` over the steps as `folder/loss.png`."""
    from matplotlib.figure import Figure

    lines = (folder / "history.jsonl").read_text().splitlines() if (folder / "history.jsonl").exists() else []
    rows = [json.loads(line) for line in lines]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for split, name in sorted({(row["split"], name) for row in rows for name in row if name not in _NOT_FIGURES}):
        points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
        axis.plot(*zip(*points, strict=True), label=f"{name}, {split}")
    axis.set(xlabel="step", yscale="log")
    if rows:
        axis.legend()
    figure.savefig(folder / "loss.png", dpi=80)
