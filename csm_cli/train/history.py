"""Files of a training run: history.jsonl with all figures, loss.png, TensorBoard logs, and atomically saved states."""

from __future__ import annotations

import io
import json
import time
from typing import TYPE_CHECKING, Any

from csm_cli.errors import OutputFailed, UsageError
from csm_cli.storage.files import atomic_file, write_atomically
from csm_cli.storage.untrusted import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NOT_FIGURES = {"step", "split", "time"}
_HISTORY = "history.jsonl"


def save_state(state: dict[str, Any], path: Path) -> None:
    """torch.save through a temporary file, so that a killed process leaves no partial state.

    Raises:
        OutputFailed: the disk is full or failed.
    """
    import torch

    try:
        with atomic_file(path) as file:
            torch.save(state, file)
    except RuntimeError as problem:  # torch's own writer raises RuntimeError
        reason = str(problem).splitlines()[0]
        raise OutputFailed(f"{path} could not be written ({reason}); free disk space and run again") from problem


class HistoryWriter:
    """Figures of a run in `folder`: history.jsonl, loss.png and optionally TensorBoard logs.

    Figures after `step`, which an earlier process recorded but did not save, are dropped: those steps are repeated.

    Raises:
        UsageError: TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._folder = folder
        path = folder / _HISTORY
        saved = [record for record in _read_history(path) if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in saved).encode())
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as problem:
                raise UsageError('tensorboard: true needs it; pip install "csm-cli[tensorboard]"') from problem
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Raises OutputFailed where the disk is full."""
        append_figures(self._folder, step, split, figures)
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            self._board.flush()


def append_figures(folder: Path, step: int, split: str, figures: Mapping[str, float]) -> None:
    """Appends figures to `folder/history.jsonl`. Raises OutputFailed where the disk is full."""
    path = folder / _HISTORY
    try:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, "time": round(time.time()), **figures}) + "\n")
    except OSError as problem:
        reason = f"({problem.strerror}); free disk space and run again"
        raise OutputFailed(f"{path} could not be written {reason}") from problem


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Records up to the first line that a killed process has left incomplete."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(parse_json(line))
        except ValueError:
            break
    return records


def plot_history(folder: Path) -> None:
    """Plots every figure of `folder/history.jsonl` over the steps as `folder/loss.png`."""
    from matplotlib.figure import Figure

    records = _read_history(folder / _HISTORY)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for split, name in sorted({(each["split"], name) for each in records for name in each if name not in _NOT_FIGURES}):
        points = [(each["step"], each[name]) for each in records if each["split"] == split and name in each]
        axis.plot(*zip(*points, strict=True), label=f"{name}, {split}")
    axis.set(xlabel="step", yscale="log")
    if records:
        axis.legend(fontsize="small", ncols=2)
    image = io.BytesIO()
    figure.savefig(image, dpi=80)
    write_atomically(folder / "loss.png", image.getvalue(), flush=False)
