"""A manifest to files, across as many runs as it takes: what is done is recorded, and not done twice. No torch here."""

from csm_cli.batch.fingerprint import Marker, Voice
from csm_cli.batch.ledger import LEDGER, Ledger
from csm_cli.batch.outputs import Item, Pattern, file_name
from csm_cli.batch.plan import Choice, Plan, Shard, choose, sweep

__all__ = [
    "LEDGER",
    "Choice",
    "Item",
    "Ledger",
    "Marker",
    "Pattern",
    "Plan",
    "Shard",
    "Voice",
    "choose",
    "file_name",
    "sweep",
]
