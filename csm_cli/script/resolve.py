"""What a script means: the schema's models to a Conversation, with every complaint at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csm_cli.script import schema
from csm_cli.script.cast import Cast, read_cast, recording, voice_turn
from csm_cli.script.drafts import Draft, context_drafts, message_drafts, spelled, turn_drafts
from csm_cli.script.say import split_tags
from csm_cli.script.source import Source, shown, written
from csm_cli.script.validate import read
from csm_cli.types import Conversation, Options, Turn


@dataclass(frozen=True)
class Setting:
    """What the turns of a script, or the lines of a manifest, have in common."""

    cast: Cast = field(default_factory=Cast)
    gap: float = 0.0
    options: Options = field(default_factory=Options)
    context: tuple[Turn, ...] = ()
    title: str = ""
    loudness: float | None = None
    lexicon: Mapping[str, str] = field(default_factory=dict)


HEADLESS = Setting(Cast(known=False))  # the first line, perhaps a header, could not be parsed
_HEAD = {"csm", "title", "speakers", "defaults", "lexicon"}
_BODY = {"turns", "messages", "text", "input"}


def is_header(data: object) -> bool:
    """Whether the first line of a JSONL file is what all others have in common, not one of them."""
    return isinstance(data, dict) and bool(_HEAD & data.keys()) and not _BODY & data.keys()


def resolve_script(source: Source, name: str, base: Setting) -> Conversation | None:
    """The script in `source.data`; None where its outline is beyond reading. Complaints are noted in `source`."""
    outline = read(schema.ScriptOutline, source, source.data, ())
    if outline is None:
        return None
    setting = resolve_setting(source, outline, base)
    return _dialogue(source, outline, setting, name)


def resolve_line(source: Source, setting: Setting, name: str) -> Conversation | None:
    """One line of a manifest under the setting of its header; `name` is its id where it gives none."""
    data = source.data
    if isinstance(data, dict) and ("turns" in data or "messages" in data):
        outline = read(schema.DialogueOutline, source, data, ())
        if outline is None:
            return None
        return _dialogue(source, outline, resolve_setting(source, outline, setting), outline.id or name)
    line = read(schema.Line, source, data, ())
    return None if line is None else _line(source, line, setting, name)


def resolve_setting(source: Source, outline: Any, base: Setting) -> Setting:
    """The head of a script over `base`.

    Its speakers replace those, its context follows, its defaults and its lexicon lie over.
    """
    cast = base.cast
    if outline.speakers is not None:
        cast = read_cast(source, outline.speakers, ("speakers",))
    elif "speakers" in source.data:
        cast = Cast(known=False)
    given = None if outline.defaults is None else read(schema.Defaults, source, outline.defaults, ("defaults",))
    defaults = given or schema.Defaults()
    return Setting(
        cast=cast,
        gap=base.gap if defaults.gap is None else defaults.gap,
        options=defaults.options().over(base.options),
        context=base.context + _context(source, outline.context, cast),
        title=outline.title or base.title,
        loudness=base.loudness if defaults.loudness is None else defaults.loudness,
        lexicon={**base.lexicon, **_lexicon(source, outline.lexicon)},
    )


def _lexicon(source: Source, entries: Any) -> Mapping[str, str]:
    given = None if entries is None else read(schema.Lexicon, source, entries, ("lexicon",))
    return given.root if given else {}


def _context(source: Source, entries: Sequence[Any] | None, cast: Cast) -> tuple[Turn, ...]:
    drafts = context_drafts(source, entries or (), ("context",))
    _unique_ids(source, drafts)
    turns = (_turn(source, draft, cast) for draft in drafts)
    return tuple(turn for turn in turns if turn is not None)


def _dialogue(source: Source, outline: Any, setting: Setting, name: str) -> Conversation:
    if outline.turns is not None and outline.messages is not None:
        source.complain(("messages",), 'stands beside "turns"; keep one', at_key=True)
    if outline.messages is not None and outline.turns is None:
        written_turns = message_drafts(source, outline.messages, ("messages",))
    else:
        written_turns = turn_drafts(source, outline.turns or (), ("turns",))
    drafts = written_turns.drafts
    spoken = [draft for draft in drafts if not draft.heard]
    if not spoken and not written_turns.broken:
        source.complain(("messages" if outline.messages else "turns",), "there are no turns to speak")
    _context_first(source, drafts)
    _unique_ids(source, drafts)
    pairs = [(draft, _turn(source, draft, setting.cast, at)) for at, draft in enumerate(drafts)]
    turns = [
        _timed(source, draft, turn, setting.gap, draft is spoken[0])
        for draft, turn in pairs
        if turn and not draft.heard
    ]
    heard = tuple(turn for draft, turn in pairs if turn and draft.heard)
    return Conversation(
        turns=tuple(turns),
        context=_voices(setting.cast, turns) + setting.context + heard,
        id=name,
        title=setting.title,
        tail=written_turns.tail,
        defaults=setting.options,
        loudness=setting.loudness,
        lexicon=setting.lexicon,
    )


def _line(source: Source, line: schema.Line, setting: Setting, name: str) -> Conversation:
    context = setting.context + _context(source, line.context, setting.cast)
    drafts = _line_drafts(source, line, setting.cast)
    turns = [turn for turn in (_turn(source, draft, setting.cast) for draft in drafts) if turn]
    return Conversation(
        turns=tuple(turns),
        context=_line_voices(source, line, setting.cast, turns) + context,
        id=line.id or name,
        title=setting.title,
        defaults=setting.options,
        loudness=setting.loudness,
        lexicon=setting.lexicon,
    )


def _line_drafts(source: Source, line: schema.Line, cast: Cast) -> list[Draft]:
    text_at = (spelled(source.data, "text"),)
    speaker_at = (spelled(source.data, "speaker"),)
    whole = Draft((), line.speaker or "", speaker_at, line.text, text_at, gain=line.gain or 0.0, options=line.options())
    if line.speaker is not None:
        return [whole]
    if len(cast.speakers) > 1:
        source.complain(("speaker",), "missing; speakers: " + ", ".join(cast.speakers))
        return []
    if cast.speakers:
        return [replace(whole, speaker=next(iter(cast.speakers)))]
    return [replace(whole, speaker=str(part.speaker), text=part.text) for part in split_tags(line.text, 0)]


def _voices(cast: Cast, turns: Iterable[Turn]) -> tuple[Turn, ...]:
    names = {turn.name for turn in turns}
    return tuple(voice for name, voice in cast.voices.items() if name in names)


def _line_voices(source: Source, line: schema.Line, cast: Cast, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The line's own voice, which is its only speaker's, else the cast's."""
    who = {(turn.speaker, turn.name) for turn in turns}
    if line.voice is not None and len(who) > 1:
        source.complain(("voice",), "whose is it? the text has several speakers; write turns, and speakers with voices")
        return ()
    own = voice_turn(source, line, next(iter(who), (0, "")), ())
    return (own,) if own else _voices(cast, turns)


def _turn(source: Source, draft: Draft, cast: Cast, index: int = 0) -> Turn | None:
    """The turn of a draft, untimed; None where it has no speaker, text or audio to go by. index: in its dialogue."""
    complaint = cast.complaint(draft.speaker)
    if complaint:
        source.complain(draft.speaker_at, complaint, at_key=draft.speaker_at == draft.text_at)
    if not draft.text.strip():
        source.complain(draft.text_at, "expected text, got nothing")
    clip = None
    if draft.audio is not None:
        clip = recording(source, draft.audio, draft.audio_at, (draft.start, draft.end))
    number = cast.number(draft.speaker)
    if number is None or (draft.audio is not None and clip is None):
        return None
    speaker = cast.speakers.get(draft.speaker)
    return Turn(
        speaker=number,
        text=draft.text.rstrip("\r\n"),
        name=draft.speaker,
        id=draft.id,
        recording=clip,
        gain=draft.gain + (speaker.gain or 0.0 if speaker else 0.0),
        options=draft.options.over(_nth(speaker.options(), index)) if speaker and clip is None else draft.options,
    )


def _nth(options: Options, index: int) -> Options:
    """A speaker's options for their turn `index`: each has a seed of its own, as a conversation's turns have."""
    return options if options.seed is None else replace(options, seed=(options.seed + index) % 2**63)


def _timed(source: Source, draft: Draft, turn: Turn, gap: float, first: bool) -> Turn:
    """`turn` with the silence before it: its offset or the default gap, and the pauses written before it."""
    usual = 0.0 if first else gap
    total = draft.pause + (usual if draft.offset is None else draft.offset)
    if first and total < 0:
        source.complain((*draft.at, "offset"), f"nothing stands before the first turn that {total:g} s could overlap")
    return replace(turn, gap=total)


def _context_first(source: Source, drafts: Sequence[Draft]) -> None:
    started = False
    for draft in drafts:
        started = started or not draft.heard
        if started and draft.heard:
            source.complain((*draft.at, "include"), "context has to stand before the first turn that is not context")


def _unique_ids(source: Source, drafts: Sequence[Draft]) -> None:
    owners: dict[str, Draft] = {}
    for draft in drafts:
        owner = owners.setdefault(draft.id, draft)
        if draft.id and owner is not draft:
            source.complain(draft.id_at, f"{shown(draft.id)} is the id of {written(owner.at)} too")
