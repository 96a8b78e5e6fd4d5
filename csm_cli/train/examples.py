"""Prepared conversations as rows, and which of them make which batch: a pure function of the seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from csm_cli.errors import InputError
from csm_cli.train.batches import IGNORE, Batch, LossMask, SequenceRow, collate, make_loss_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from csm_cli.data.store import Example, Store
    from csm_cli.generation.prompt import PromptBuilder

_POOL = 16  # batches whose conversations are sorted by length together


def example_row(example: Example, prompt_builder: PromptBuilder) -> SequenceRow:
    """A conversation as the model reads it: each turn's text, its frames and one frame of end codes.

    Raises:
        InputError: a text that cannot be spoken, with the example's id.
    """
    try:
        turns = [prompt_builder.turn_tokens(turn.speaker, turn.text, turn.codes).numpy() for turn in example.turns]
    except InputError as problem:
        raise InputError(f"{example.id}: {problem}") from problem
    learned = np.concatenate(
        [np.full(len(turn), each.learned) for turn, each in zip(turns, example.turns, strict=True)]
    )
    rows = np.concatenate(turns)
    text, codes = rows[:, -1], rows[:, :-1]
    is_text = text >= 0
    labels = np.where((learned & ~is_text)[:, None], codes, IGNORE)
    return SequenceRow(
        text=np.where(is_text, text, 0),
        is_text=is_text,
        codes=np.where(is_text[:, None], 0, codes),
        labels=labels,
        weights=np.ones(len(rows), np.float32),
        guide=np.full(len(rows), -1.0),
        voices=np.full(len(rows), IGNORE),
        name=example.id,
    )


@dataclass(frozen=True)
class BatchSpec:
    """How examples are dealt out: `tokens` positions a batch, `window` at most in one example."""

    tokens: int
    window: int
    seed: int = 0


class ExampleSampler:
    """A store's examples dealt into batches, over and over: batch n is the same in every run, whoever asks for it.

    Raises:
        InputError: the store is empty, has other codebooks than the model, or an example beyond the window.
    """

    def __init__(self, store: Store, prompt_builder: PromptBuilder, portions: BatchSpec, codebooks: int) -> None:
        if not len(store):
            raise InputError("the training data holds no examples; csm data prepare says what it dropped and why")
        if store.codebooks != codebooks:
            raise InputError(
                f"the data has {store.codebooks} codebooks, the model {codebooks}; prepare it with --model of this one"
            )
        self._store, self._prompt_builder, self._portions = store, prompt_builder, portions
        self._deals: dict[int, list[NDArray[np.int64]]] = {}

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[N] positions of each example."""
        return np.array([self._length(index) for index in range(len(self._store))], np.int64)

    def _length(self, index: int) -> int:
        example = self._store[index]
        length = len(example_row(example, self._prompt_builder))
        if length > self._portions.window:
            raise InputError(f"{example.id}: has {length} positions, the model's window {self._portions.window}")
        if not any(turn.learned for turn in example.turns):
            raise InputError(f"{example.id}: has no turn to learn; every one is context")
        return length

    def batch(self, number: int, plan: LossMask) -> Batch:
        """Batch `number` since the beginning, an epoch after another; its random choices are its own."""
        epoch, place = 0, number
        while place >= len(self._deal(epoch)):
            place -= len(self._deal(epoch))
            epoch += 1
        return collate([self._chosen(int(index), epoch, plan) for index in self._deal(epoch)[place]])

    def _chosen(self, index: int, epoch: int, plan: LossMask) -> SequenceRow:
        random = np.random.default_rng((self._portions.seed, epoch, index))
        return make_loss_mask(example_row(self._store[index], self._prompt_builder), plan, random)

    def _deal(self, epoch: int) -> list[NDArray[np.int64]]:
        """The indices of each batch of an epoch: shuffled, those of like length together, batches shuffled again."""
        if epoch not in self._deals:
            self._deals = {known: deal for known, deal in self._deals.items() if known >= epoch - 1 or known == 0}
            random = np.random.default_rng((self._portions.seed, epoch))
            order = random.permutation(len(self.lengths))
            batches = [batch for pool in self._pools(order) for batch in self._grouped(pool)]
            self._deals[epoch] = [batches[index] for index in random.permutation(len(batches))]
        return self._deals[epoch]

    def _pools(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        positions = np.cumsum(self.lengths[order])
        cuts = np.searchsorted(positions, np.arange(1, positions[-1] // self._pooled + 1) * self._pooled)
        for pool in np.split(order, np.unique(cuts)):
            yield pool[np.argsort(self.lengths[pool], kind="stable")]

    @property
    def _pooled(self) -> int:
        return _POOL * self._portions.tokens

    def _grouped(self, pool: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Neighbours of a sorted pool whose padded batch has at most `tokens` positions, or one example alone."""
        first = 0
        for index in range(len(pool)):
            if index > first and self.lengths[pool[index]] * (index - first + 1) > self._portions.tokens:
                yield pool[first:index]
                first = index
        if len(pool):
            yield pool[first:]


def evaluation_batches(
    store: Store, prompt_builder: PromptBuilder, tokens: int, share: Sequence[int] = (0, 1)
) -> Iterator[Batch]:
    """All examples once, in order, all their frames learned: every `share[1]`-th batch from `share[0]` on."""
    batches: list[list[SequenceRow]] = [[]]
    for index in range(len(store)):
        row = example_row(store[index], prompt_builder)
        longest = max([len(row), *map(len, batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(row)
    yield from (collate(rows) for rows in batches[share[0] :: share[1]] if rows)
