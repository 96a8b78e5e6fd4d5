"""Training batches: conversations as token sequences, what of them counts in the loss, and which batch holds what.

All random choices are made here, from generators seeded by (seed, epoch, example): the loss itself has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csm_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from csm_cli.data.store import Example, Store
    from csm_cli.generation.prompt import PromptBuilder

IGNORE = -100
_POOL_BATCHES = 16  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class SequenceRow:
    """One conversation of S positions.

    text_ids: [S], used where `is_text` [S]; codes: [S, K], used elsewhere. labels: [S, K] codes to predict, or IGNORE;
    a frame with only its first label set is trained in the backbone alone, like CsmProcessor's label -101.
    weights: [S] loss weight of each frame. aux_targets: [S] targets of auxiliary losses by name, or IGNORE.
    """

    text_ids: NDArray[Any]
    is_text: NDArray[Any]
    codes: NDArray[Any]
    labels: NDArray[Any]
    weights: NDArray[Any]
    aux_targets: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    example_id: str = ""

    def __len__(self) -> int:
        return len(self.text_ids)


_PADDING = {"text_ids": 0, "is_text": False, "codes": 0, "labels": IGNORE, "weights": 0.0}


@dataclass(frozen=True)
class Batch:
    """Rows padded at the end to [B, S, ...]."""

    text_ids: Tensor
    is_text: Tensor
    codes: Tensor
    labels: Tensor
    weights: Tensor
    aux_targets: Mapping[str, Tensor]
    example_ids: tuple[str, ...]

    def to(self, device: str | torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device) for name in _PADDING}
        aux_targets = {name: targets.to(device) for name, targets in self.aux_targets.items()}
        return replace(self, **moved, aux_targets=aux_targets)

    def target_counts(self, aux_losses: Sequence[str] = ()) -> Tensor:
        """[2 + A] float64: weights of the backbone's and depth decoder's targets; targets of each auxiliary loss."""
        weights, labelled = self.weights.double(), self.labels != IGNORE
        counts = [(weights * labelled[..., 0]).sum(), (weights * labelled[..., 1]).sum()]
        return torch.stack(counts + [(self.aux_targets[name] != IGNORE).sum().double() for name in aux_losses])


def collate(rows: Sequence[SequenceRow]) -> Batch:
    """Pads rows at the end to the longest; all have the same auxiliary targets."""
    length = max(map(len, rows))
    columns = {name: _pad([getattr(row, name) for row in rows], length, fill) for name, fill in _PADDING.items()}
    aux_targets = {name: _pad([row.aux_targets[name] for row in rows], length, IGNORE) for name in rows[0].aux_targets}
    return Batch(**columns, aux_targets=aux_targets, example_ids=tuple(row.example_id for row in rows))


def _pad(columns: Sequence[NDArray[Any]], length: int, fill: float) -> Tensor:
    block = np.full((len(columns), length, *columns[0].shape[1:]), fill, columns[0].dtype)
    for target, column in zip(block, columns, strict=True):
        target[: len(column)] = column
    return torch.from_numpy(block)


@dataclass(frozen=True)
class LossMask:
    """What of a row counts in the loss.

    depth_frame_share: share of the frames whose codebooks after the first are trained too; a turn's end frame always
    is. token_corruption: share of the input frames replaced by random codes from 1 to `codebook_size`.
    turn_start_weight: loss weight of a turn's first two frames, which alone show the voice; above 1 all their
    codebooks are trained.
    """

    depth_frame_share: float = 1 / 16
    token_corruption: float = 0.0
    turn_start_weight: float = 1.0
    codebook_size: int = 0


def apply_loss_mask(row: SequenceRow, mask: LossMask, random: np.random.Generator) -> SequenceRow:
    """The row with the random choices of one step applied to its labels, weights and input codes."""
    labelled = row.labels[:, 0] != IGNORE
    after_text = np.concatenate([[False], row.is_text[:-1]])
    turn_starts = labelled & (after_text | np.concatenate([[False], after_text[:-1]]))  # first two frames of a turn
    turn_ends = labelled & (row.labels == 0).all(axis=1)
    with_depth = turn_ends | (turn_starts & (mask.turn_start_weight > 1))
    with_depth |= random.random(len(row)) < mask.depth_frame_share
    labels = row.labels.copy()
    labels[~with_depth, 1:] = IGNORE
    weights = np.where(turn_starts, np.float32(mask.turn_start_weight), row.weights)
    codes = row.codes
    if mask.token_corruption > 0:
        corrupted = (random.random(len(row)) < mask.token_corruption) & codes.any(axis=1)  # not the end frames
        codes = np.where(corrupted[:, None], random.integers(1, mask.codebook_size, codes.shape), codes)
    return replace(row, labels=labels, weights=weights, codes=codes)


def example_row(example: Example, prompts: PromptBuilder) -> SequenceRow:
    """A conversation as model input: each turn's text, its frames and one end frame.

    Raises:
        InputError: a text that cannot be tokenized, with the example's id.
    """
    try:
        turns = [prompts.turn_tokens(turn.speaker, turn.text, turn.codes).numpy() for turn in example.turns]
    except InputError as problem:
        raise InputError(f"{example.id}: {problem}") from problem
    trained = np.concatenate(
        [np.full(len(rows), turn.trained) for rows, turn in zip(turns, example.turns, strict=True)]
    )
    positions = np.concatenate(turns)
    text_ids, codes = positions[:, -1], positions[:, :-1]
    is_text = text_ids >= 0
    return SequenceRow(
        text_ids=np.where(is_text, text_ids, 0),
        is_text=is_text,
        codes=np.where(is_text[:, None], 0, codes),
        labels=np.where((trained & ~is_text)[:, None], codes, IGNORE),
        weights=np.ones(len(positions), np.float32),
        example_id=example.id,
    )


@dataclass(frozen=True)
class BatchSpec:
    """tokens: positions per batch, padding included; max_positions: of one example; seed: of the order."""

    tokens: int
    max_positions: int
    seed: int = 0


class ExampleSampler:
    """Endless batches of a store's examples; batch n depends on the seed alone, in every run and process.

    Raises:
        InputError: the store is empty, has other codebooks than the model, or an example that is too long.
    """

    def __init__(self, store: Store, prompts: PromptBuilder, spec: BatchSpec, codebooks: int) -> None:
        if not len(store):
            raise InputError("the training data holds no examples; dropped.jsonl in its folder has the reasons")
        if store.codec.codebooks != codebooks:
            raise InputError(
                f"the data has {store.codec.codebooks} codebooks, the model {codebooks}; prepare it with this --model"
            )
        self._store, self._prompts, self._spec = store, prompts, spec
        self.lengths = np.array([self._checked_length(index) for index in range(len(store))], np.int64)  # positions
        self._epochs: dict[int, list[NDArray[np.int64]]] = {}
        self._batch_counts: list[int] = []  # of each epoch so far

    def _checked_length(self, index: int) -> int:
        example = self._store[index]
        length = len(example_row(example, self._prompts))
        if length > self._spec.max_positions:
            raise InputError(f"{example.id}: has {length} positions, the model takes {self._spec.max_positions}")
        if not any(turn.trained for turn in example.turns):
            raise InputError(f"{example.id}: has no turn to train on; all turns are context")
        return length

    def batch(self, number: int, mask: LossMask) -> Batch:
        """Batch `number` since the start of training, counted across epochs."""
        epoch = 0
        while True:
            if epoch == len(self._batch_counts):
                self._batch_counts.append(len(self._epoch(epoch)))
            if number < self._batch_counts[epoch]:
                return collate([self.row(int(index), epoch, mask) for index in self._epoch(epoch)[number]])
            number -= self._batch_counts[epoch]
            epoch += 1

    def row(self, index: int, epoch: int, mask: LossMask) -> SequenceRow:
        """Example `index` with the random choices of an epoch."""
        random = np.random.default_rng((self._spec.seed, epoch, index))
        return apply_loss_mask(example_row(self._store[index], self._prompts), mask, random)

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Example indices of each batch: shuffled, pools sorted by length, split to batches, batches shuffled again."""
        if epoch not in self._epochs:
            self._epochs = {known: batches for known, batches in self._epochs.items() if known == epoch - 1}
            random = np.random.default_rng((self._spec.seed, epoch))
            order = random.permutation(len(self.lengths))
            positions, pool_size = np.cumsum(self.lengths[order]), _POOL_BATCHES * self._spec.tokens
            cuts = np.searchsorted(positions, np.arange(1, positions[-1] // pool_size + 1) * pool_size)
            batches: list[NDArray[np.int64]] = []
            for pool in np.split(order, np.unique(cuts)):
                batches += self._split(pool[np.argsort(self.lengths[pool], kind="stable")])
            self._epochs[epoch] = [batches[index] for index in random.permutation(len(batches))]
        return self._epochs[epoch]

    def _split(self, pool: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Neighbours in a pool sorted by length, at most `tokens` padded positions, or one longer example alone."""
        first = 0
        for index in range(len(pool)):
            if index > first and self.lengths[pool[index]] * (index - first + 1) > self._spec.tokens:
                yield pool[first:index]
                first = index
        if len(pool):
            yield pool[first:]


def evaluation_batches(
    store: Store, prompts: PromptBuilder, tokens: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All examples once, in order, every frame in the loss; of them every `shard[1]`-th batch from `shard[0]` on."""
    batches: list[list[SequenceRow]] = [[]]
    for index in range(len(store)):
        row = example_row(store[index], prompts)
        longest = max([len(row), *map(len, batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(row)
    yield from (collate(rows) for rows in batches[shard[0] :: shard[1]] if rows)
