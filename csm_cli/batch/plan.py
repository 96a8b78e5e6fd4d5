"""What remains of a batch, by shard. Reads ledgers without a lock, so that it can be asked while shards run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from csm_cli.batch.items import BatchItem, Counts, OutputPattern, select_items
from csm_cli.batch.ledger import LedgerEntry, read_entries
from csm_cli.storage.outputs import OutputStore
from csm_cli.types import Conversation


@dataclass
class ShardPlan:
    """A shard's items. failed: of those selected, the ones that failed before with the same input."""

    index: int
    counts: Counts = field(default_factory=Counts)
    failed: int = 0

    def record(self) -> dict[str, int]:
        counts = self.counts
        return {
            "shard": self.index,
            "items": counts.total,
            "done": counts.done,
            "left": counts.selected,
            "failed": self.failed,
            "chars_left": counts.chars,
        }


class BatchPlan:
    """The plan of shards, one for each of `patterns`; every n-th row belongs to one, as in `Shard`."""

    def __init__(self, patterns: Sequence[OutputPattern]) -> None:
        self.shards = [ShardPlan(index) for index in range(1, len(patterns) + 1)]
        self._patterns = patterns
        self._entries: dict[Path, Mapping[str, LedgerEntry]] = {}

    def items(self, conversations: Iterable[Conversation]) -> Iterator[BatchItem]:
        """Each conversation with its output in its shard."""
        for number, conversation in enumerate(conversations):
            yield self._patterns[number % len(self._patterns)].item(conversation, number + 1)

    def count(self, items: Iterable[BatchItem]) -> None:
        """Counts all items. items: in the order of the rows, with their fingerprints."""
        for number, item in enumerate(items):
            shard = self.shards[number % len(self.shards)]
            outputs = self._patterns[shard.index - 1].outputs
            entries = self._ledger(outputs)
            for _ in select_items([item], entries, shard.counts, exists=outputs.exists):
                entry = entries.get(item.id)
                shard.failed += entry is not None and (entry.status, entry.fingerprint) == ("failed", item.fingerprint)

    def _ledger(self, outputs: OutputStore) -> Mapping[str, LedgerEntry]:
        if outputs.folder not in self._entries:
            self._entries[outputs.folder] = read_entries(outputs)
        return self._entries[outputs.folder]
