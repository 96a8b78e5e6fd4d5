"""What a model learns from: conversations as rows of one length, which of their frames are learned, and batches.

Random choices are made here, on a row, from a generator that is given: the loss has none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class SequenceRow:
    """One conversation of S positions.

    text: [S] ids where `is_text` [S], codes: [S, K] elsewhere; labels: [S, K] codes to predict, or IGNORE. A frame of
    which only the first is a label is learned by the backbone alone, as CsmProcessor's label -101 asks.
    weights: [S] how much a frame counts; guide: [S] position of the byte heard in the next frame, or -1; voices: [S]
    the voice that is about to be heard, before a turn's first two frames, or IGNORE.
    """

    text: NDArray[Any]
    is_text: NDArray[Any]
    codes: NDArray[Any]
    labels: NDArray[Any]
    weights: NDArray[Any]
    guide: NDArray[Any]
    voices: NDArray[Any]
    name: str = ""

    def __len__(self) -> int:
        return len(self.text)


_FILLS = {"text": 0, "is_text": False, "codes": 0, "labels": IGNORE, "weights": 0.0, "guide": -1.0, "voices": IGNORE}


@dataclass(frozen=True)
class Batch:
    """Rows padded behind to [B, S, ...], and their names."""

    text: Tensor
    is_text: Tensor
    codes: Tensor
    labels: Tensor
    weights: Tensor
    guide: Tensor
    voices: Tensor
    names: tuple[str, ...]

    def to(self, device: str | torch.device) -> Batch:
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "names"}
        return replace(self, **moved)

    @property
    def sizes(self) -> Tensor:
        """[4] float64: weights of what the backbone learns and the depth decoder; guided and named positions."""
        weights, learned = self.weights.double(), self.labels != IGNORE
        return torch.stack(
            (
                (weights * learned[..., 0]).sum(),
                (weights * learned[..., 1]).sum(),
                (self.guide >= 0).sum().double(),
                (self.voices != IGNORE).sum().double(),
            )
        )


def collate(rows: Sequence[SequenceRow]) -> Batch:
    """Pads rows behind to the longest."""
    longest = max(map(len, rows))
    columns = {name: _padded([getattr(row, name) for row in rows], longest, fill) for name, fill in _FILLS.items()}
    return Batch(**columns, names=tuple(row.name for row in rows))


def _padded(columns: Sequence[NDArray[Any]], longest: int, fill: float) -> Tensor:
    block = np.full((len(columns), longest, *columns[0].shape[1:]), fill, columns[0].dtype)
    for target, column in zip(block, columns, strict=True):
        target[: len(column)] = column
    return torch.from_numpy(block)


@dataclass(frozen=True)
class LossMask:
    """What of a row is learned.

    depth_share: share of the frames whose other codebooks are learned too; the frame that ends a turn always is.
    corrupt: share of the input frames replaced by random codes below `codes`. start_weight: how much a turn's first two
    frames count, which alone show whose voice it is; above 1 they are always learned whole.
    """

    depth_share: float = 1 / 16
    corrupt: float = 0.0
    start_weight: float = 1.0
    codes: int = 0


def make_loss_mask(row: SequenceRow, plan: LossMask, random: np.random.Generator) -> SequenceRow:
    """A row with this step's random choices made."""
    learned = row.labels[:, 0] != IGNORE
    starts = _starts(row)
    ends = learned & (row.labels == 0).all(axis=1)
    whole = ends | (starts & (plan.start_weight > 1)) | (random.random(len(row)) < plan.depth_share)
    labels = row.labels.copy()
    labels[~whole, 1:] = IGNORE
    weights = np.where(starts, np.float32(plan.start_weight), row.weights)
    return replace(row, labels=labels, weights=weights, codes=_corrupted(row, plan, random))


def _starts(row: SequenceRow) -> NDArray[Any]:
    """[S] of the first two frames of each learned turn."""
    after = np.concatenate([[False], row.is_text[:-1]])
    starts: NDArray[Any] = (row.labels[:, 0] != IGNORE) & (after | np.concatenate([[False], after[:-1]]))
    return starts


def _corrupted(row: SequenceRow, plan: LossMask, random: np.random.Generator) -> NDArray[Any]:
    """Input codes; end frames stay."""
    if plan.corrupt <= 0:
        return row.codes
    replaced = (random.random(len(row)) < plan.corrupt) & row.codes.any(axis=1)
    noise = random.integers(1, plan.codes, row.codes.shape)
    spoiled: NDArray[Any] = np.where(replaced[:, None], noise, row.codes)
    return spoiled
