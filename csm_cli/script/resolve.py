"""What a script means: the schema's models to a Conversation, with every diagnostic at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csm_cli.script import schema
from csm_cli.script.inline import split_tags
from csm_cli.script.parsed_turns import ParsedTurn, parse_context_turns, parse_messages, parse_turns, spelled
from csm_cli.script.source import Source, as_written, quoted
from csm_cli.script.speakers import SpeakerTable, read_speakers, resolve_recording, voice_turn
from csm_cli.script.validate import validate_entry
from csm_cli.types import Conversation, GenerationOptions, Turn


@dataclass(frozen=True)
class ManifestHeader:
    """What the turns of a script, or the lines of a manifest, have in common."""

    cast: SpeakerTable = field(default_factory=SpeakerTable)
    gap: float = 0.0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    context: tuple[Turn, ...] = ()
    title: str = ""
    loudness: float | None = None
    lexicon: Mapping[str, str] = field(default_factory=dict)


UNKNOWN_HEADER = ManifestHeader(SpeakerTable(known=False))  # the first line, perhaps a header, could not be parsed
_HEAD = {"csm", "title", "speakers", "defaults", "lexicon"}
_BODY = {"turns", "messages", "text", "input"}


def is_header(data: object) -> bool:
    """Whether the first line of a JSONL file is what all others have in common, not one of them."""
    return isinstance(data, dict) and bool(_HEAD & data.keys()) and not _BODY & data.keys()


def resolve_script(source: Source, name: str, base: ManifestHeader) -> Conversation | None:
    """The script in `source.data`; None where its outline is beyond reading. Diagnostics are noted in `source`."""
    outline = validate_entry(schema.ScriptOutline, source, source.data, ())
    if outline is None:
        return None
    setting = resolve_header(source, outline, base)
    return _dialogue(source, outline, setting, name)


def resolve_line(source: Source, setting: ManifestHeader, name: str) -> Conversation | None:
    """One line of a manifest under the setting of its header; `name` is its id where it gives none."""
    data = source.data
    if isinstance(data, dict) and ("turns" in data or "messages" in data):
        outline = validate_entry(schema.DialogueOutline, source, data, ())
        if outline is None:
            return None
        return _dialogue(source, outline, resolve_header(source, outline, setting), outline.id or name)
    line = validate_entry(schema.ManifestLine, source, data, ())
    return None if line is None else _line(source, line, setting, name)


def resolve_header(source: Source, outline: Any, base: ManifestHeader) -> ManifestHeader:
    """The head of a script over `base`.

    Its speakers replace those, its context follows, its defaults and its lexicon lie over.
    """
    cast = base.cast
    if outline.speakers is not None:
        cast = read_speakers(source, outline.speakers, ("speakers",))
    elif "speakers" in source.data:
        cast = SpeakerTable(known=False)
    given = (
        None
        if outline.defaults is None
        else validate_entry(schema.ScriptDefaults, source, outline.defaults, ("defaults",))
    )
    defaults = given or schema.ScriptDefaults()
    return ManifestHeader(
        cast=cast,
        gap=base.gap if defaults.gap is None else defaults.gap,
        options=defaults.options().over(base.options),
        context=base.context + _context(source, outline.context, cast),
        title=outline.title or base.title,
        loudness=base.loudness if defaults.loudness is None else defaults.loudness,
        lexicon={**base.lexicon, **_lexicon(source, outline.lexicon)},
    )


def _lexicon(source: Source, entries: Any) -> Mapping[str, str]:
    given = None if entries is None else validate_entry(schema.Lexicon, source, entries, ("lexicon",))
    return given.root if given else {}


def _context(source: Source, entries: Sequence[Any] | None, cast: SpeakerTable) -> tuple[Turn, ...]:
    drafts = parse_context_turns(source, entries or (), ("context",))
    _unique_ids(source, drafts)
    turns = (_turn(source, draft, cast) for draft in drafts)
    return tuple(turn for turn in turns if turn is not None)


def _dialogue(source: Source, outline: Any, setting: ManifestHeader, name: str) -> Conversation:
    if outline.turns is not None and outline.messages is not None:
        source.add_error(("messages",), 'stands beside "turns"; keep one', at_key=True)
    if outline.messages is not None and outline.turns is None:
        written_turns = parse_messages(source, outline.messages, ("messages",))
    else:
        written_turns = parse_turns(source, outline.turns or (), ("turns",))
    drafts = written_turns.drafts
    spoken = [draft for draft in drafts if not draft.heard]
    if not spoken and not written_turns.broken:
        source.add_error(("messages" if outline.messages else "turns",), "there are no turns to speak")
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


def _line(source: Source, line: schema.ManifestLine, setting: ManifestHeader, name: str) -> Conversation:
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


def _line_drafts(source: Source, line: schema.ManifestLine, cast: SpeakerTable) -> list[ParsedTurn]:
    text_at = (spelled(source.data, "text"),)
    speaker_at = (spelled(source.data, "speaker"),)
    whole = ParsedTurn(
        (), line.speaker or "", speaker_at, line.text, text_at, gain=line.gain or 0.0, options=line.options()
    )
    if line.speaker is not None:
        return [whole]
    if len(cast.speakers) > 1:
        source.add_error(("speaker",), "missing; speakers: " + ", ".join(cast.speakers))
        return []
    if cast.speakers:
        return [replace(whole, speaker=next(iter(cast.speakers)))]
    return [replace(whole, speaker=str(part.speaker), text=part.text) for part in split_tags(line.text, 0)]


def _voices(cast: SpeakerTable, turns: Iterable[Turn]) -> tuple[Turn, ...]:
    names = {turn.name for turn in turns}
    return tuple(voice for name, voice in cast.voices.items() if name in names)


def _line_voices(
    source: Source, line: schema.ManifestLine, cast: SpeakerTable, turns: Sequence[Turn]
) -> tuple[Turn, ...]:
    """The line's own voice, which is its only speaker's, else the cast's."""
    who = {(turn.speaker, turn.name) for turn in turns}
    if line.voice is not None and len(who) > 1:
        source.add_error(
            ("voice",), "whose is it? the text has several speakers; write turns, and speakers with voices"
        )
        return ()
    own = voice_turn(source, line, next(iter(who), (0, "")), ())
    return (own,) if own else _voices(cast, turns)


def _turn(source: Source, draft: ParsedTurn, cast: SpeakerTable, index: int = 0) -> Turn | None:
    """The turn of a draft, untimed; None where it has no speaker, text or audio to go by. index: in its dialogue."""
    diagnostic = cast.diagnostic(draft.speaker)
    if diagnostic:
        source.add_error(draft.speaker_at, diagnostic, at_key=draft.speaker_at == draft.text_at)
    if not draft.text.strip():
        source.add_error(draft.text_at, "expected text, got nothing")
    clip = None
    if draft.audio is not None:
        clip = resolve_recording(source, draft.audio, draft.audio_at, (draft.start, draft.end))
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


def _nth(options: GenerationOptions, index: int) -> GenerationOptions:
    """A speaker's options for their turn `index`: each has a seed of its own, as a conversation's turns have."""
    return options if options.seed is None else replace(options, seed=(options.seed + index) % 2**63)


def _timed(source: Source, draft: ParsedTurn, turn: Turn, gap: float, first: bool) -> Turn:
    """`turn` with the silence before it: its offset or the default gap, and the pauses written before it."""
    usual = 0.0 if first else gap
    total = draft.pause + (usual if draft.offset is None else draft.offset)
    if first and total < 0:
        source.add_error((*draft.at, "offset"), f"nothing stands before the first turn that {total:g} s could overlap")
    return replace(turn, gap=total)


def _context_first(source: Source, drafts: Sequence[ParsedTurn]) -> None:
    started = False
    for draft in drafts:
        started = started or not draft.heard
        if started and draft.heard:
            source.add_error((*draft.at, "include"), "context has to stand before the first turn that is not context")


def _unique_ids(source: Source, drafts: Sequence[ParsedTurn]) -> None:
    owners: dict[str, ParsedTurn] = {}
    for draft in drafts:
        owner = owners.setdefault(draft.id, draft)
        if draft.id and owner is not draft:
            source.add_error(draft.id_at, f"{quoted(draft.id)} is the id of {as_written(owner.at)} too")
