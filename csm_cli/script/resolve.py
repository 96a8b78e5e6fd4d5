"""Validated entries of scripts and manifests to conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csm_cli.script import schema
from csm_cli.script.inline import split_tags
from csm_cli.script.source import INVALID, Keys, Source, format_path, quoted
from csm_cli.script.speakers import SpeakerTable, number_of, read_speakers, resolve_recording, voice_turn
from csm_cli.script.validate import validate_entry, validate_turn
from csm_cli.types import Conversation, GenerationOptions, Turn


@dataclass(frozen=True)
class ManifestHeader:
    """What the turns of a script, or the lines of a manifest, have in common."""

    speakers: SpeakerTable = field(default_factory=SpeakerTable)
    gap: float = 0.0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    context: tuple[Turn, ...] = ()
    title: str = ""
    loudness: float | None = None
    lexicon: Mapping[str, str] = field(default_factory=dict)


UNKNOWN_HEADER = ManifestHeader(SpeakerTable(known=False))  # the first line, perhaps a header, could not be parsed
_HEADER_FIELDS = {"csm", "title", "speakers", "defaults", "lexicon"}
_LINE_FIELDS = {"turns", "messages", "text", "input"}


@dataclass(frozen=True)
class ParsedTurn:
    """A turn as data, the same for every way to write it.

    path: of the entry; paths: of the fields that diagnostics name. audio: the file of a recorded turn, with the part
    from `start` to `end` in seconds. pause: seconds of silence written before the turn.
    """

    path: Keys
    paths: Mapping[str, Keys]
    speaker: str
    text: str
    audio: str | None = None
    start: float | None = None
    end: float | None = None
    id: str = ""
    offset: float | None = None
    pause: float = 0.0
    gain: float = 0.0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    is_context: bool = False


@dataclass(frozen=True)
class ParsedTurns:
    """final_pause: seconds of silence after the last turn. has_errors: some entries could not be parsed."""

    turns: tuple[ParsedTurn, ...] = ()
    final_pause: float = 0.0
    has_errors: bool = False


def is_header(data: object) -> bool:
    """Whether the first line of a JSONL file is the header of the others."""
    return isinstance(data, dict) and bool(_HEADER_FIELDS & data.keys()) and not _LINE_FIELDS & data.keys()


def resolve_script(source: Source, name: str, base: ManifestHeader) -> Conversation | None:
    """The script in `source.data`; None if its outline is invalid. Diagnostics are added to `source`."""
    outline = validate_entry(schema.ScriptOutline, source, source.data, ())
    return None if outline is None else _resolve_dialogue(source, outline, base, name)


def resolve_line(source: Source, header: ManifestHeader, name: str) -> Conversation | None:
    """One line of a manifest; `name` is its id if it has none. None if its outline is invalid."""
    data = source.data
    if isinstance(data, dict) and ("turns" in data or "messages" in data):
        outline = validate_entry(schema.DialogueOutline, source, data, ())
        return None if outline is None else _resolve_dialogue(source, outline, header, outline.id or name)
    line = validate_entry(schema.ManifestLine, source, data, ())
    return None if line is None else _resolve_text(source, line, header, name)


def resolve_header(source: Source, outline: Any, base: ManifestHeader) -> ManifestHeader:
    """The first line of a manifest over `base`."""
    header = _shared_fields(source, outline, base)
    context = _parse_context(source, outline.context)
    _assign_ids(source, header, context)
    return replace(header, context=header.context + _context_turns(source, context, header.speakers))


def _shared_fields(source: Source, outline: Any, base: ManifestHeader) -> ManifestHeader:
    """The fields of an outline over `base`, without its context. Its speakers replace those of `base`."""
    speakers = base.speakers
    if outline.speakers is not None:
        speakers = read_speakers(source, outline.speakers)
    elif "speakers" in source.data:
        speakers = SpeakerTable(known=False)
    defaults, lexicon = None, None
    if outline.defaults is not None:
        defaults = validate_entry(schema.ScriptDefaults, source, outline.defaults, ("defaults",))
    if outline.lexicon is not None:
        lexicon = validate_entry(schema.Lexicon, source, outline.lexicon, ("lexicon",))
    defaults = defaults or schema.ScriptDefaults()
    return ManifestHeader(
        speakers=speakers,
        gap=base.gap if defaults.gap is None else defaults.gap,
        options=defaults.options().over(base.options),
        context=base.context,
        title=outline.title or base.title,
        loudness=base.loudness if defaults.loudness is None else defaults.loudness,
        lexicon={**base.lexicon, **(lexicon.root if lexicon else {})},
    )


def _resolve_dialogue(source: Source, outline: Any, base: ManifestHeader, name: str) -> Conversation:
    header = _shared_fields(source, outline, base)
    context = _parse_context(source, outline.context)
    if outline.turns is not None and outline.messages is not None:
        source.add_error(("messages",), 'cannot be used with "turns"; keep one', at_key=True)
    if outline.messages is not None and outline.turns is None:
        parsed = _parse_messages(source, outline.messages)
    else:
        parsed = _parse_turns(source, outline.turns or ())
    _assign_ids(source, header, (*context, *parsed.turns))
    _check_ids_are_unique(source, parsed.turns)
    turns: list[Turn] = []
    included_context: list[Turn] = []
    is_first = True
    for index, each in enumerate(parsed.turns):
        turn = _resolve_turn(source, each, header.speakers, index)
        if each.is_context:
            if not is_first:
                source.add_error((*each.path, "include"), "context must come before the first other turn")
            included_context += [turn] if turn else []
            continue
        gap = each.pause + (each.offset if each.offset is not None else 0.0 if is_first else header.gap)
        if is_first and gap < 0:
            source.add_error((*each.path, "offset"), f"the first turn has no turn before it to overlap by {-gap:g} s")
        is_first = False
        turns += [replace(turn, gap=gap)] if turn else []
    if is_first and not parsed.has_errors:
        source.add_error(("messages" if outline.messages else "turns",), "there are no turns to speak")
    recorded = _context_turns(source, context, header.speakers) + tuple(included_context)
    return _conversation(header, name, turns, recorded, tail=parsed.final_pause)


def _resolve_text(source: Source, line: schema.ManifestLine, header: ManifestHeader, name: str) -> Conversation:
    """A manifest line with one text."""
    context = _parse_context(source, line.context)
    paths = {"speaker": _field_path(source.data, "speaker", ()), "text": _field_path(source.data, "text", ())}
    parsed = ParsedTurn((), paths, line.speaker or "", line.text, gain=line.gain or 0.0, options=line.options())
    declared = list(header.speakers.entries)
    if line.speaker is not None:
        parts = [parsed]
    elif len(declared) > 1:
        source.add_error(("speaker",), "missing; speakers: " + ", ".join(declared))
        parts = []
    elif declared:
        parts = [replace(parsed, speaker=declared[0])]
    else:
        parts = [replace(parsed, speaker=str(tag.speaker), text=tag.text) for tag in split_tags(line.text, 0)]
    _assign_ids(source, header, (*context, *parts))
    turns = [turn for part in parts if (turn := _resolve_turn(source, part, header.speakers))]
    speakers = {(turn.speaker, turn.name) for turn in turns}
    voice = None
    if line.voice is not None and len(speakers) > 1:
        message = "which speaker is it for? the text has several; write turns, and speakers with voices"
        source.add_error(("voice",), message)
    else:
        voice = voice_turn(source, line, next(iter(speakers), (0, "")), ())
    return _conversation(header, line.id or name, turns, _context_turns(source, context, header.speakers), voice)


def _conversation(
    header: ManifestHeader,
    name: str,
    turns: Sequence[Turn],
    context: tuple[Turn, ...],
    voice: Turn | None = None,
    tail: float = 0.0,
) -> Conversation:
    """voice: the prompt of the only speaker; without it, each speaker who has turns gets the prompt of the header."""
    names = {turn.name for turn in turns}
    prompts = tuple(prompt for name, prompt in header.speakers.voices.items() if name in names)
    return Conversation(
        turns=tuple(turns),
        context=((voice,) if voice else prompts) + header.context + context,
        id=name,
        title=header.title,
        tail=tail,
        defaults=header.options,
        loudness=header.loudness,
        lexicon=header.lexicon,
    )


def _parse_turns(source: Source, entries: Sequence[Any]) -> ParsedTurns:
    turns: list[ParsedTurn] = []
    pause, has_errors = 0.0, False
    for index, entry in enumerate(entries):
        model = None if entry is INVALID else validate_turn(source, entry, ("turns", index))
        if isinstance(model, schema.PauseEntry):
            pause += model.pause
            continue
        if model is None:
            has_errors = True
        else:
            turns.append(_parse_turn(model, entry, ("turns", index), pause))
        pause = 0.0
    return ParsedTurns(tuple(turns), pause, has_errors)


def _parse_context(source: Source, entries: Sequence[Any] | None) -> tuple[ParsedTurn, ...]:
    turns = []
    for index, entry in enumerate(entries or ()):
        model = validate_entry(schema.ContextEntry, source, entry, ("context", index))
        if model is not None:
            turns.append(_parse_turn(model, entry, ("context", index)))
    _check_ids_are_unique(source, turns)
    return tuple(turns)


def _parse_turn(model: Any, entry: object, path: Keys, pause: float = 0.0) -> ParsedTurn:
    if isinstance(model, schema.ShortEntry):
        name, text = next(iter(model.root.items()))
        return ParsedTurn(path, dict.fromkeys(("speaker", "text"), (*path, name)), name, text, pause=pause)
    is_spoken = isinstance(model, schema.SpokenEntry)
    return ParsedTurn(
        path=path,
        paths={name: _field_path(entry, name, path) for name in schema.ALIASES},
        speaker=model.speaker,
        text=model.text,
        audio=None if is_spoken else model.audio,
        start=None if is_spoken else model.start,
        end=None if is_spoken else model.end,
        id=model.id or "",
        offset=getattr(model, "offset", None),
        pause=pause,
        gain=getattr(model, "gain", None) or 0.0,
        options=model.options() if is_spoken else GenerationOptions(),
        is_context=isinstance(model, schema.ExcludedEntry),
    )


def _parse_messages(source: Source, entries: Sequence[Any]) -> ParsedTurns:
    """The entries of `messages`; those with audio before the first without are context."""
    turns: list[ParsedTurn] = []
    is_context = True
    for index, entry in enumerate(entries):
        path: Keys = ("messages", index)
        message = validate_entry(schema.Message, source, entry, path)
        if message is None:
            continue
        role, content = (*path, "role"), (*path, "content")
        if isinstance(message.content, str):
            is_context = False
            turns.append(ParsedTurn(path, {"speaker": role, "text": content}, message.role, message.content))
            continue
        texts = [(at, item.text) for at, item in enumerate(message.content) if isinstance(item, schema.TextItem)]
        clips = [(at, item.path) for at, item in enumerate(message.content) if isinstance(item, schema.AudioItem)]
        if len(texts) != 1 or len(clips) > 1:
            source.add_error(content, f"expected one text and at most one audio, got {len(texts)} and {len(clips)}")
            continue
        (text_index, text), (clip_index, clip) = texts[0], clips[0] if clips else (0, None)
        is_context = is_context and clip is not None
        paths = {"speaker": role, "text": (*content, text_index, "text"), "audio": (*content, clip_index, "path")}
        turns.append(ParsedTurn(path, paths, message.role, text, audio=clip, is_context=is_context))
    return ParsedTurns(tuple(turns), has_errors=len(turns) < len(entries))


def _context_turns(source: Source, parsed: Iterable[ParsedTurn], speakers: SpeakerTable) -> tuple[Turn, ...]:
    return tuple(turn for each in parsed if (turn := _resolve_turn(source, each, speakers)))


def _resolve_turn(source: Source, parsed: ParsedTurn, speakers: SpeakerTable, index: int = 0) -> Turn | None:
    """The turn without its gap; None if speaker or audio are invalid. index: of the turn in its dialogue."""
    paths = parsed.paths
    if problem := speakers.problem(parsed.speaker):
        source.add_error(paths["speaker"], problem, at_key=paths["speaker"] == paths["text"])
    if not parsed.text.strip():
        source.add_error(paths["text"], "expected text, got nothing")
    recording = None
    if parsed.audio is not None:
        recording = resolve_recording(source, parsed.audio, paths["audio"], parsed.start, parsed.end)
    number = speakers.id_of(parsed.speaker)
    if number is None or (parsed.audio is not None and recording is None):
        return None
    gain, options = parsed.gain, parsed.options
    entry = speakers.entries.get(parsed.speaker)
    if entry:
        gain += entry.gain or 0.0
    if entry and recording is None:
        defaults = entry.options()
        if defaults.seed is not None:  # each turn gets its own
            defaults = replace(defaults, seed=(defaults.seed + index) % 2**63)
        options = options.over(defaults)
    return Turn(number, parsed.text.rstrip("\r\n"), parsed.speaker, parsed.id, recording, gain=gain, options=options)


def _assign_ids(source: Source, header: ManifestHeader, parsed: Sequence[ParsedTurn]) -> None:
    """Gives names ids where the file declares no speakers; a number must not mean the same speaker as a name."""
    speakers = header.speakers
    names = [*(turn.name for turn in header.context), *(turn.speaker for turn in parsed)]
    speakers.assign_ids(names)
    owners = {speakers.id_of(name): name for name in names if number_of(name) is None}
    for turn in parsed:
        owner = None if speakers.entries else owners.get(number_of(turn.speaker))
        if owner and number_of(turn.speaker) is not None:
            message = f'{turn.speaker} is the id that {quoted(owner)} got in this file; declare ids in "speakers"'
            source.add_error(turn.paths["speaker"], message)


def _check_ids_are_unique(source: Source, turns: Sequence[ParsedTurn]) -> None:
    owners: dict[str, ParsedTurn] = {}
    for turn in turns:
        owner = owners.setdefault(turn.id, turn)
        if turn.id and owner is not turn:
            source.add_error(turn.paths["id"], f"{quoted(turn.id)} is the id of {format_path(owner.path)} too")


def _field_path(entry: object, name: str, path: Keys) -> Keys:
    """The path of the field `name` of the entry at `path`, under the alias it was written with."""
    written = entry if isinstance(entry, Mapping) else {}
    return (*path, next((each for each in (name, *schema.ALIASES.get(name, ())) if each in written), name))
