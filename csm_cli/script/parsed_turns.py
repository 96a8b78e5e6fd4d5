"""The forms in which a turn can be written, brought to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csm_cli.script import schema
from csm_cli.script.source import INVALID, Keys, Source
from csm_cli.script.validate import validate_entry, validate_turn
from csm_cli.types import GenerationOptions


@dataclass(frozen=True)
class ParsedTurn:
    """A turn as it was written; the `_at` are the paths where its parts stand.

    audio: the file of a recorded turn, with the part from `start` to `end` in seconds. heard: it is context.
    pause: seconds of silence written before it.
    """

    at: Keys
    speaker: str
    speaker_at: Keys
    text: str
    text_at: Keys
    audio: str | None = None
    audio_at: Keys = ()
    start: float | None = None
    end: float | None = None
    id: str = ""
    id_at: Keys = ()
    offset: float | None = None
    pause: float = 0.0
    gain: float = 0.0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    heard: bool = False


@dataclass(frozen=True)
class ParsedTurns:
    """tail: seconds of pause after the last turn. broken: some entries could not be read."""

    drafts: tuple[ParsedTurn, ...] = ()
    tail: float = 0.0
    broken: bool = False


def parse_turns(source: Source, entries: Sequence[Any], path: Keys) -> ParsedTurns:
    """The entries of `turns`."""
    drafts: list[ParsedTurn] = []
    pause, broken = 0.0, False
    for index, entry in enumerate(entries):
        model = None if entry is INVALID else validate_turn(source, entry, (*path, index))
        if isinstance(model, schema.PauseEntry):
            pause += model.pause
            continue
        broken = broken or model is None
        if model is not None:
            drafts.append(_draft(model, entry, (*path, index), pause))
        pause = 0.0
    return ParsedTurns(tuple(drafts), pause, broken)


def parse_context_turns(source: Source, entries: Sequence[Any], path: Keys) -> tuple[ParsedTurn, ...]:
    """The entries of `context`."""
    models = (
        (validate_entry(schema.ContextEntry, source, entry, (*path, at)), entry, at) for at, entry in enumerate(entries)
    )
    return tuple(_draft(model, entry, (*path, at), 0.0) for model, entry, at in models if model is not None)


def parse_messages(source: Source, entries: Sequence[Any], path: Keys) -> ParsedTurns:
    """The entries of `messages`; those with audio before the first without are context."""
    models = [validate_entry(schema.Message, source, entry, (*path, index)) for index, entry in enumerate(entries)]
    drafts: list[ParsedTurn] = []
    heard = True
    for index, model in enumerate(models):
        draft = _message(source, model, (*path, index), heard) if model is not None else None
        if draft is not None:
            heard = draft.heard
            drafts.append(draft)
    return ParsedTurns(tuple(drafts), broken=len(drafts) < len(entries))


def spelled(entry: object, name: str) -> str:
    """The name under which `entry` gives the field `name`."""
    given = entry if isinstance(entry, Mapping) else {}
    return next((each for each in (name, *schema.ALIASES.get(name, ())) if each in given), name)


def _draft(model: Any, entry: object, path: Keys, pause: float) -> ParsedTurn:
    if isinstance(model, schema.ShortEntry):
        name, text = next(iter(model.root.items()))
        return ParsedTurn(path, name, (*path, name), text, (*path, name), pause=pause)
    spoken = isinstance(model, schema.SpokenEntry)
    return ParsedTurn(
        at=path,
        speaker=model.speaker,
        speaker_at=(*path, spelled(entry, "speaker")),
        text=model.text,
        text_at=(*path, spelled(entry, "text")),
        audio=None if spoken else model.audio,
        audio_at=(*path, spelled(entry, "audio")),
        start=None if spoken else model.start,
        end=None if spoken else model.end,
        id=model.id or "",
        id_at=(*path, spelled(entry, "id")),
        offset=getattr(model, "offset", None),
        pause=pause,
        gain=getattr(model, "gain", None) or 0.0,
        options=model.options() if spoken else GenerationOptions(),
        heard=isinstance(model, schema.ExcludedEntry),
    )


def _message(source: Source, message: schema.Message, path: Keys, heard: bool) -> ParsedTurn | None:
    role, content = (*path, "role"), (*path, "content")
    if isinstance(message.content, str):
        return ParsedTurn(path, message.role, role, message.content, content)
    texts = [(at, item.text) for at, item in enumerate(message.content) if isinstance(item, schema.TextItem)]
    clips = [(at, item.path) for at, item in enumerate(message.content) if isinstance(item, schema.AudioItem)]
    if len(texts) != 1 or len(clips) > 1:
        source.add_error(content, f"expected one text and at most one audio, got {len(texts)} and {len(clips)}")
        return None
    at, text = texts[0]
    draft = ParsedTurn(path, message.role, role, text, (*content, at, "text"))
    if not clips:
        return draft
    at, audio = clips[0]
    return replace(draft, audio=audio, audio_at=(*content, at, "path"), heard=heard)
