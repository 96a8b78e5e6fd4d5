"""A manifest to files, across as many runs as it takes: what is done is recorded, and not done twice. No torch here."""

from csm_cli.batch.fingerprint import Fingerprinter
from csm_cli.batch.ledger import LEDGER, Ledger
from csm_cli.batch.outputs import BatchItem, OutputNames, OutputPattern, file_name
from csm_cli.batch.selection import Counts, Selection, Shard, conversation_chars, remove_stale_temp_files, select_items

__all__ = [
    "LEDGER",
    "BatchItem",
    "Counts",
    "Fingerprinter",
    "Ledger",
    "OutputNames",
    "OutputPattern",
    "Selection",
    "Shard",
    "conversation_chars",
    "file_name",
    "remove_stale_temp_files",
    "select_items",
]
