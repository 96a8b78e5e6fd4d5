"""What training leaves behind on the way: figures, their curves, and states a kill cannot break."""

from __future__ import annotations

import io
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from csm_cli.errors import OutputFailed, UsageError
from csm_cli.storage.files import atomic_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_NOT_FIGURES = {"step", "split", "time"}
_HISTORY = "history.jsonl"


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save that a kill cannot leave half-written.

    Raises:
        OutputFailed: it did not fit on the disk.
    """
    import torch

    try:
        with atomic_file(path) as file:
            torch.save(state, file)
    except RuntimeError as problem:  # torch's own writer raises RuntimeError
        reason = str(problem).splitlines()[0]
        raise OutputFailed(f"{path} could not be written ({reason}); make room and run again") from problem


def log_figures(folder: Path, step: int, split: str, figures: Mapping[str, float]) -> None:
    """Log the figures and append them to `folder/history.jsonl`."""
    shown = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
    _LOG.info("%s %d %s: %s", folder.name, step, split, shown)
    _append(folder / _HISTORY, {"step": step, "split": split, "time": round(time.time()), **figures})


class HistoryWriter:
    """The figures of a run in `folder`: history.jsonl, loss.png and, if asked for, TensorBoard's logs.

    Figures later than `step`, of steps that were not saved before a kill, are dropped: those steps come again.

    Raises:
        UsageError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._folder = folder
        path = folder / _HISTORY
        kept = [row for row in _rows(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._board = _board(folder, step) if tensorboard else None

    def add(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        _append(self._folder / _HISTORY, {"step": step, "split": split, "time": round(time.time()), **figures})
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            self._board.flush()

    def draw(self) -> None:
        plot_history(self._folder)


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise UsageError('tensorboard: true needs it; pip install "csm-cli[tensorboard]"') from problem
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Raises OutputFailed where the disk is full; half a line is dropped when the run goes on."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as problem:
        raise OutputFailed(f"{path} could not be written ({problem.strerror}); make room and run again") from problem


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a history; one that a kill has cut short ends it."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def plot_history(folder: Path) -> None:
    """Draw every figure of `folder/history.jsonl` over the steps as `folder/loss.png`."""
    from matplotlib.figure import Figure

    rows = _rows(folder / _HISTORY)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for split, name in sorted({(row["split"], name) for row in rows for name in row if name not in _NOT_FIGURES}):
        points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
        axis.plot(*zip(*points, strict=True), label=f"{name}, {split}")
    axis.set(xlabel="step", yscale="log")
    if rows:
        axis.legend(fontsize="small", ncols=2)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    write_atomically(folder / "loss.png", drawn.getvalue(), flush=False)
