"""A manifest to files, across as many runs as it takes: what is done is recorded, and not done twice. No torch here."""

from csm_cli.batch.fingerprint import Marker, Voice
from csm_cli.batch.ledger import LEDGER, Ledger
from csm_cli.batch.outputs import Item, Names, Pattern, file_name
from csm_cli.batch.plan import Choice, Shard, Tally, characters, choose, sweeper

__all__ = [
    "LEDGER",
    "Choice",
    "Item",
    "Ledger",
    "Marker",
    "Names",
    "Pattern",
    "Shard",
    "Tally",
    "Voice",
    "characters",
    "choose",
    "file_name",
    "sweeper",
]
