"""The fingerprint of a batch item: equal fingerprints, equal files."""

from __future__ import annotations

from dataclasses import asdict, replace

from csm_cli.batch.outputs import BatchItem
from csm_cli.generation.fingerprint import SynthesisSetup
from csm_cli.storage.fingerprint import fingerprint

SCHEMA = 3  # increment when the same input is to sound different


class Fingerprinter:
    """Gives the items of a batch their fingerprints, and a seed to those without one.

    A fingerprint covers id, text, speakers, the bytes of recordings, options, checkpoint, schema and the file's name;
    the seed is derived from all of these but the name.
    """

    def __init__(self, setup: SynthesisSetup) -> None:
        self._setup = setup

    def mark(self, item: BatchItem) -> BatchItem:
        """`item` with its fingerprint, and with a seed where it has none."""
        conversation, setup = item.conversation, self._setup
        sound = fingerprint(
            SCHEMA,
            conversation.id,
            setup.content(),
            [conversation.tail, conversation.loudness],
            [setup.turn_content(turn, {}) for turn in conversation.context],
            [[turn.gap, turn.gain, asdict(setup.options(conversation, turn))] for turn in conversation.turns],
            [setup.turn_content(turn, conversation.lexicon) for turn in conversation.turns],
        )
        if setup.flags.over(conversation.defaults).seed is None:
            defaults = replace(conversation.defaults, seed=int(sound[:8], 16) >> 1)
            conversation = replace(conversation, defaults=defaults)
        return replace(item, conversation=conversation, fingerprint=fingerprint(sound, item.file))
