"""Which items a worker gets next, and what becomes of the items of a worker that died. No processes here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from csm_cli.batch.items import BatchItem

_BLOCK_ROUNDS = 4  # a block fills a worker's slots so many times
_MAX_DEATHS = 2  # of workers that had an item in progress; then the item runs alone, and a third death is its failure


class Dispatcher:
    """Hands out items in blocks, longest first within a block, to whichever worker has few left.

    Each item is with one worker at a time, and is finished once: what a worker had when it died is handed out again.
    Blocks become smaller towards the end, so that all workers end at about the same time. An item whose worker died
    twice while it was in progress is generated alone at the end; where a worker dies of it then, it has failed.

    total: how many items there are.
    """

    def __init__(self, items: Iterator[BatchItem], total: int, workers: int) -> None:
        self._items, self._remaining, self._workers = items, total, workers
        self._ahead: BatchItem | None = None  # the next of `items`, where it was looked at
        self._returned: deque[BatchItem] = deque()
        self._suspects: deque[BatchItem] = deque()
        self._deaths: dict[str, int] = {}
        self._assigned: dict[int, dict[str, BatchItem]] = {number: {} for number in range(workers)}
        self._alone: set[int] = set()  # workers that have a suspect
        self._draining = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to hand out, and nothing is with a worker."""
        return not self.in_progress and (self._draining or self.is_empty)

    @property
    def is_empty(self) -> bool:
        """Whether all items have been handed out."""
        if self._ahead is None:
            self._ahead = next(self._items, None)
        return self._ahead is None and not self._returned and not self._suspects

    @property
    def in_progress(self) -> int:
        return sum(map(len, self._assigned.values()))

    def next_block(self, worker: int, slots: int) -> list[BatchItem]:
        """The next items for a worker of `slots` slots; none while it has enough."""
        mine = self._assigned[worker]
        if self._draining or worker in self._alone:
            return []
        fair = -(-max(self._remaining, 1) // (2 * self._workers))
        if len(mine) > slots + min(slots // 2, fair // 2):
            return []
        rounds = _BLOCK_ROUNDS if mine else 1  # a first block is small, so that all workers start soon
        block = self._take(min(rounds * slots, fair))
        if not block and not mine and self._suspects:
            self._alone.add(worker)
            block = [self._suspects.popleft()]
        block.sort(key=lambda item: -item.chars)
        mine.update((item.id, item) for item in block)
        return block

    def _take(self, count: int) -> list[BatchItem]:
        block = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        if len(block) < count and self._ahead:
            block.append(self._ahead)
            self._ahead = None
        block += islice(self._items, count - len(block))
        self._remaining = max(0, self._remaining - len(block))
        return block

    def finish(self, worker: int, item_id: str) -> BatchItem | None:
        """The item that a worker has finished; None where it is no longer that worker's."""
        self._alone.discard(worker)
        self._deaths.pop(item_id, None)
        return self._assigned[worker].pop(item_id, None)

    def lose(self, worker: int, slots: int, blamed: bool = True) -> list[BatchItem]:
        """Takes back what a worker of `slots` slots had when it died; returns the items that have failed by that.

        blamed: the cause may be one of the items, those of the first slots; not so where a machine was lost.
        """
        items = list(self._assigned[worker].values())
        self._assigned[worker].clear()
        was_alone = worker in self._alone
        self._alone.discard(worker)
        if was_alone and blamed:
            return items
        for number, item in enumerate(items):
            if blamed and number < 2 * slots:
                self._deaths[item.id] = self._deaths.get(item.id, 0) + 1
            is_suspect = was_alone or self._deaths.get(item.id, 0) >= _MAX_DEATHS
            (self._suspects if is_suspect else self._returned).append(item)
        self._remaining += len(items)
        return []

    def give_back(self, worker: int, item_ids: list[str]) -> None:
        """Takes back items that a worker has not started."""
        self._alone.discard(worker)
        self._returned += (found for name in item_ids if (found := self._assigned[worker].pop(name, None)))

    def drain(self) -> None:
        """Hands out nothing more."""
        self._draining = True
