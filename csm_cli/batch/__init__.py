"""A manifest to files, across as many runs as needed: no item is done twice. No torch here."""

from csm_cli.batch.items import (
    BatchItem,
    Counts,
    Fingerprinter,
    OutputNames,
    OutputPattern,
    Selection,
    Shard,
    file_name,
    select_items,
)
from csm_cli.batch.ledger import LEDGER, Ledger, LedgerEntry, merge_ledgers

__all__ = [
    "LEDGER",
    "BatchItem",
    "Counts",
    "Fingerprinter",
    "Ledger",
    "LedgerEntry",
    "OutputNames",
    "OutputPattern",
    "Selection",
    "Shard",
    "file_name",
    "merge_ledgers",
    "select_items",
]
