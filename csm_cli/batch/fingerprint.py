"""Of what an item's sound is made, in one number: the same number, the same sound."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.batch.outputs import BatchItem
from csm_cli.generation.chunking import apply_lexicon
from csm_cli.types import Conversation, GenerationOptions, Recording, RetryPolicy, Turn

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

SCHEMA = 2  # one more whenever the same input is to sound different
FILES_KEPT = 4096  # so that a long batch, each line with its own context, does not grow
_SAMPLES, _SAMPLE_BYTES = 64, 16384


@dataclass(frozen=True)
class SynthesisSetup:
    """Who speaks, and how all items are spoken.

    flags: options above the script's own; retry_policy, verified: how takes are
    chosen.
    """

    checkpoint: Checkpoint
    flags: GenerationOptions
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    verified: bool = False


class Fingerprinter:
    """Gives the items of a batch their fingerprints, and a seed to those that have none.

    A fingerprint covers id, text, speakers, the bytes of recordings, options, checkpoint, schema, and the file's name,
    which is all that does not count for the seed. Device, dtype and 8 bits are left out: a batch can go on elsewhere.
    """

    def __init__(self, voice: SynthesisSetup) -> None:
        self._voice = voice
        self._checkpoint = checkpoint_fingerprint(voice.checkpoint)
        self._files: dict[Path, str] = {}

    def mark(self, item: BatchItem) -> BatchItem:
        """`item` with its fingerprint; its seed, where nobody gave one, comes from that."""
        talk, retry_policy = item.conversation, self._voice.retry_policy
        options = self._voice.flags.over(talk.defaults).completed(self._voice.checkpoint.defaults)
        parts: dict[str, Any] = {
            "schema": SCHEMA,
            "id": talk.id,
            "checkpoint": self._checkpoint,
            "options": _given(options),
            "retry_policy": [retry_policy.trim, retry_policy.takes, retry_policy.chunk_chars, self._voice.verified],
            "tail": talk.tail,
            "loudness": talk.loudness,
            "context": [self._turn(turn) for turn in talk.context],
            "turns": [self._turn(turn, talk.lexicon) for turn in talk.turns],
        }
        sound = _digest(json.dumps(parts, sort_keys=True))
        mark = _digest(f"{sound} {item.file}")
        return replace(item, conversation=_seeded(talk, options, int(sound[:8], 16) >> 1), fingerprint=mark)

    def _turn(self, turn: Turn, lexicon: Mapping[str, str] | None = None) -> dict[str, Any]:
        heard = turn.recording
        return {
            "speaker": turn.speaker,
            "text": turn.text,
            "spelled": apply_lexicon(turn.text, lexicon or {}),
            "gap": turn.gap,
            "gain": turn.gain,
            "options": _given(turn.options),
            "audio": [self._sound(heard), heard.start, heard.end] if heard else None,
        }

    def _sound(self, recording: Recording) -> str:
        """What a recording's file holds; an unreadable one is told where it is read for its sound."""
        if recording.path not in self._files:
            if len(self._files) >= FILES_KEPT:
                del self._files[next(iter(self._files))]
            try:
                with recording.path.open("rb") as file:
                    self._files[recording.path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                self._files[recording.path] = "unreadable"
        return self._files[recording.path]


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """What a checkpoint is, wherever it lies: its configs, and pieces from all over its weights and tokenizer."""
    digest = hashlib.sha256(repr((checkpoint.config, checkpoint.memory)).encode())
    digest.update(json.dumps(checkpoint.codec_config, sort_keys=True, default=str).encode())
    files = {*checkpoint.weights.files, *checkpoint.codec_weights.files, checkpoint.tokenizer_file}
    for name in sorted(files, key=lambda path: path.name):
        size = name.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        with name.open("rb") as file:
            for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _seeded(talk: Conversation, options: GenerationOptions, seed: int) -> Conversation:
    if options.seed is not None:
        return talk
    return replace(talk, defaults=replace(talk.defaults, seed=seed))


def _given(options: GenerationOptions) -> Mapping[str, Any]:
    return {name: value for name, value in asdict(options).items() if value is not None}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
