"""Conversations in this program's own format: scripts and manifests whose turns have been recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from csm_cli.data.clips import DroppedClip, TrainingClip, TrainingConversation
from csm_cli.errors import ScriptInvalid
from csm_cli.script import Manifest, read_script
from csm_cli.types import Conversation, Turn


def read_dialogue(path: Path) -> Iterator[TrainingConversation | DroppedClip]:
    """The one conversation of a script."""
    try:
        yield _talk(read_script(path), str(path))
    except ScriptInvalid as invalid:
        yield _broken(str(path), invalid)


def read_dialogues(path: Path) -> Iterator[TrainingConversation | DroppedClip]:
    """The conversations of a JSONL manifest, one a line.

    Raises:
        ScriptInvalid: the file cannot be read.
    """
    for number, item in Manifest(path).lines():
        place = f"{path}:{number}"
        yield _broken(place, item) if isinstance(item, ScriptInvalid) else _talk(item, place)


def _broken(place: str, invalid: ScriptInvalid) -> DroppedClip:
    first, more = invalid.diagnostics[0], len(invalid.diagnostics) - 1
    told = f"{first.path}: {first.message}" if first.path else first.message
    return DroppedClip(
        "",
        first.location if first.line else place,
        "broken row",
        told + (f"; and {more} more, which csm check tells" if more else ""),
    )


def _talk(conversation: Conversation, place: str) -> TrainingConversation:
    heard = [_clip(turn, f"{place} context {at}", False) for at, turn in enumerate(conversation.context, 1)]
    spoken = [_clip(turn, f"{place} turn {at}", True) for at, turn in enumerate(conversation.turns, 1)]
    return TrainingConversation(conversation.id, (*heard, *spoken))


def _clip(turn: Turn, place: str, learned: bool) -> TrainingClip:
    return TrainingClip(turn.speaker, turn.text.strip(), turn.recording, place, learned)
