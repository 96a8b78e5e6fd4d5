"""Validated entries of scripts and manifests to conversations: speakers, voices, recordings and turns."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from csm_cli.errors import Diagnostic, ModelError, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.files import read_transcript
from csm_cli.script.inline import split_tags
from csm_cli.script.lexicon import merge_lexicons, read_lexicon
from csm_cli.script.limits import MAX_SPEAKERS
from csm_cli.script.source import INVALID, Keys, Source, format_path, quoted, text_problem
from csm_cli.script.spoken_text import clean_text, is_speakable, pause_problem
from csm_cli.script.validate import validate_entry, validate_turn
from csm_cli.types import Conversation, GenerationOptions, Recording, Turn
from csm_cli.voices.store import find_voice, is_name

_LOG = logging.getLogger(__name__)
_NUMBER = re.compile(r"[+-]?\d[\d.]*")
_SYSTEM_ROLES = ("system", "developer")
_HEADER_FIELDS = {"csm", "title", "speakers", "defaults", "lexicon"}
_LINE_FIELDS = {"turns", "messages", "text", "input"}


def number_of(name: str) -> int | None:
    """The speaker id that a name from 0 to 999 means; None for every other name."""
    return int(name) if re.fullmatch(r"[0-9]{1,3}", name) else None


@dataclass(frozen=True)
class SpeakerTable:
    """The speakers of one script or manifest.

    entries: of the `speakers` section, None for an invalid one; empty if the file has no such section. ids: the
    number the model reads for each name; without a section it grows as names are used. voices: the prompt of each
    speaker that has a voice. known: False if a section could not be parsed; then no name is checked.
    """

    entries: Mapping[str, schema.SpeakerFields | None] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    voices: Mapping[str, Turn] = field(default_factory=dict)
    known: bool = True

    def id_of(self, name: str) -> int | None:
        """The number the model reads for `name`; None if it has none."""
        return self.ids.get(name) if self.entries else self.ids.get(name, number_of(name))

    def assign_ids(self, names: Iterable[str]) -> None:
        """Without a `speakers` section: gives each new name the lowest id that neither a name nor a number has."""
        if self.entries or not self.known:
            return
        names = dict.fromkeys(names)
        new = [name for name in names if name not in self.ids and name.strip() and not _NUMBER.fullmatch(name)]
        taken = {*self.ids.values(), *(number_of(name) for name in names)} if new else set()
        free = (number for number in range(MAX_SPEAKERS) if number not in taken)
        self.ids.update(zip(new, free, strict=False))

    def problem(self, name: str, source: Source) -> str:
        """Why `name` cannot be the speaker of a turn; empty if it can or if its entry has a diagnostic already."""
        if not self.known or name in self.entries or (not self.entries and self.id_of(name) is not None):
            return ""
        if self.entries:
            guess = source.suggestion(name, self.entries) if len(self.entries) > 8 else None
            hint = f'did you mean "{guess}"?' if guess else "speakers: " + ", ".join(islice(self.entries, 8))
            return f"{quoted(name)} is not declared; {hint}"
        if not name.strip() or _NUMBER.fullmatch(name):
            return f"expected a name or a number from 0 to {MAX_SPEAKERS - 1}, got {quoted(name)}"
        return f"{quoted(name)} is one speaker too many; at most {MAX_SPEAKERS} are possible"


def read_speakers(source: Source, speakers: Mapping[str, object]) -> SpeakerTable:
    """The table of a `speakers` section. Entries without an id get the lowest free ids, in order."""
    if not speakers:
        source.add_error(("speakers",), "expected at least one speaker; remove the section to have ids assigned")
    if len(speakers) > MAX_SPEAKERS:
        source.add_error(("speakers",), f"expected at most {MAX_SPEAKERS} speakers, got {len(speakers)}")
        return SpeakerTable(known=False)
    entries = {
        name: validate_entry(schema.SpeakerFields, source, entry, ("speakers", name))
        for name, entry in speakers.items()
    }
    owners: dict[int, str] = {}
    ids: dict[str, int] = {}
    for name, entry in entries.items():
        if name in schema.TURN_FIELDS or not name.strip():
            source.add_error(("speakers", name), "cannot be the name of a speaker; choose another", at_key=True)
        if entry is None:
            continue
        number = number_of(name) if entry.id is None else entry.id
        if number is not None:
            ids[name] = number
            owner = owners.setdefault(number, name)
            if owner != name:
                source.add_error(("speakers", name, "id"), f"{number} is the id of {quoted(owner)} too")
        elif _NUMBER.fullmatch(name):
            message = f"a number as a name must be from 0 to {MAX_SPEAKERS - 1}; add an id"
            source.add_error(("speakers", name), message, at_key=True)
    free = (number for number in range(MAX_SPEAKERS) if number not in owners)
    ids |= {name: next(free) for name, entry in entries.items() if entry and name not in ids}
    voices = {
        name: voice_turn(source, entry, (ids[name], name), ("speakers", name))
        for name, entry in entries.items()
        if entry
    }
    return SpeakerTable(entries, ids, {name: turn for name, turn in voices.items() if turn})


def resolve_recording(
    source: Source, audio: str, path: Keys, start: float | None = None, end: float | None = None
) -> Recording | None:
    """The audio file named at `path`, from `start` to `end` seconds; None and a diagnostic if it cannot be used."""
    file = source.files.find(audio)
    if file is None:
        hint = "; download it first" if "://" in audio else ""
        source.add_error(path, f"no such file: {audio}{hint}")
        return None
    problem = source.files.problem(file, start, end)
    if problem:
        source.diagnostics.append(Diagnostic(audio, 0, 0, format_path(path), problem))
        return None
    return Recording(file, start, end)


def voice_turn(
    source: Source, entry: schema.SpeakerFields | schema.ManifestLine, speaker: tuple[int, str], path: Keys
) -> Turn | None:
    """The voice prompt of the entry at `path` as a past turn of its speaker (id and name); None without a voice."""
    text_path = (*path, "voice_text")
    if entry.voice is None:
        if entry.voice_text is not None:
            source.add_error(text_path, 'has no effect without "voice"')
        return None
    if is_name(entry.voice) and source.files.find(entry.voice) is None:
        try:
            voice = find_voice(entry.voice)
        except ModelError as error:
            source.add_error((*path, "voice"), str(error))
            return None
        if entry.voice_text is not None:
            source.add_error(text_path, "has no effect on a saved voice, which has its own text; remove it")
        return voice.turn(*speaker)
    recording = resolve_recording(source, entry.voice, (*path, "voice"))
    if recording is None:
        return None
    text = entry.voice_text
    if text is None:
        text_path = (*path, "voice")
        transcript = recording.path.with_suffix(".txt")
        if not transcript.exists():
            message = f'its text is missing; write it in "voice_text" or in {transcript.name} beside the audio'
            source.add_error(text_path, message)
            return None
        try:
            text = read_transcript(transcript)
        except ScriptInvalid as invalid:
            source.diagnostics.extend(invalid.diagnostics)
            return None
    problem = text_problem(text) if text.strip() else "the text of the voice is empty"
    if problem:
        source.add_error(text_path, problem)
        return None
    return Turn(speaker=speaker[0], text=clean_text(text).strip(), name=speaker[1], recording=recording)


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


@dataclass(frozen=True)
class ParsedTurn:
    """A validated entry. path, paths: of it and of its fields in the data. pause: seconds of silence written before."""

    path: Keys
    paths: Mapping[str, Keys]
    entry: schema.SpokenEntry | schema.ContextEntry
    pause: float = 0.0


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
    defaults = None
    if outline.defaults is not None:
        defaults = validate_entry(schema.ScriptDefaults, source, outline.defaults, ("defaults",))
    entries: Mapping[str, str] = {}
    if isinstance(outline.lexicon, str):
        entries = _lexicon_file(source, outline.lexicon)
    elif outline.lexicon is not None:
        lexicon = validate_entry(schema.Lexicon, source, outline.lexicon, ("lexicon",))
        entries = lexicon.root if lexicon else {}
    defaults = defaults or schema.ScriptDefaults()
    return ManifestHeader(
        speakers=speakers,
        gap=base.gap if defaults.gap is None else defaults.gap,
        options=defaults.options().over(base.options),
        context=base.context,
        title=outline.title or base.title,
        loudness=base.loudness if defaults.loudness is None else defaults.loudness,
        lexicon=merge_lexicons(base.lexicon, entries),
    )


def _lexicon_file(source: Source, name: str) -> Mapping[str, str]:
    """The entries of a lexicon beside the script; its diagnostics are added to the script's."""
    file = source.files.find(name)
    if file is None:
        source.add_error(("lexicon",), f"no such file: {name}")
        return {}
    try:
        return read_lexicon(file)
    except ScriptInvalid as invalid:
        source.diagnostics.extend(invalid.diagnostics)
        return {}


def _resolve_dialogue(source: Source, outline: Any, base: ManifestHeader, name: str) -> Conversation:
    header = _shared_fields(source, outline, base)
    context = _parse_context(source, outline.context)
    if outline.turns is not None and outline.messages is not None:
        source.add_error(("messages",), 'cannot be used with "turns"; keep one', at_key=True)
    if outline.messages is not None and outline.turns is None:
        parsed, tail = _parse_messages(source, outline.messages, header.speakers), 0.0
    else:
        parsed, tail = _parse_turns(source, outline.turns or ())
    _assign_ids(source, header, (*context, *parsed))
    _check_ids_are_unique(source, parsed)
    turns: list[Turn] = []
    included_context: list[Turn] = []
    is_first = True
    for index, each in enumerate(parsed):
        turn = _resolve_turn(source, each, header.speakers, index)
        if isinstance(each.entry, schema.ExcludedEntry):
            if not is_first:
                source.add_error((*each.path, "include"), "context must come before the first other turn")
            included_context += [turn] if turn else []
            continue
        offset = getattr(each.entry, "offset", None)
        gap = each.pause + (offset if offset is not None else 0.0 if is_first else header.gap)
        if is_first and gap < 0:
            source.add_error((*each.path, "offset"), f"the first turn has no turn before it to overlap by {-gap:g} s")
        is_first = False
        turns += [replace(turn, gap=gap)] if turn else []
    if is_first and not any(each.path.startswith(("turns[", "messages[")) for each in source.diagnostics):
        source.add_error(("messages" if outline.messages else "turns",), "there are no turns to speak")
    recorded = _context_turns(source, context, header.speakers) + tuple(included_context)
    return _conversation(header, name, turns, recorded, tail=tail)


def _resolve_text(source: Source, line: schema.ManifestLine, header: ManifestHeader, name: str) -> Conversation:
    """A manifest line with one text."""
    context = _parse_context(source, line.context)
    declared = list(header.speakers.entries)
    if line.speaker is not None:
        parts = [(line.speaker, line.text)]
    elif len(declared) > 1:
        source.add_error(("speaker",), "missing; speakers: " + ", ".join(declared))
        parts = []
    elif declared:
        parts = [(declared[0], line.text)]
    else:
        parts = [(str(tag.speaker), tag.text) for tag in split_tags(line.text, 0)]
    paths = {field: _field_path(source.data, field, ()) for field in ("speaker", "text")}
    fields = dict(line) | {"id": None}
    parsed = [
        ParsedTurn((), paths, schema.SpokenEntry.model_construct(**fields | {"speaker": speaker, "text": text}))
        for speaker, text in parts
    ]
    _assign_ids(source, header, (*context, *parsed))
    turns = [turn for each in parsed if (turn := _resolve_turn(source, each, header.speakers))]
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


def _parse_turns(source: Source, entries: Sequence[Any]) -> tuple[list[ParsedTurn], float]:
    """The valid entries of `turns`, and seconds of silence after the last one."""
    turns: list[ParsedTurn] = []
    pause = 0.0
    for index, entry in enumerate(entries):
        path: Keys = ("turns", index)
        model = None if entry is INVALID else validate_turn(source, entry, path)
        if isinstance(model, schema.PauseEntry):
            pause += model.pause
            continue
        if isinstance(model, schema.ShortEntry):
            speaker, text = next(iter(model.root.items()))
            spoken = schema.SpokenEntry.model_construct(speaker=speaker, text=text)
            turns.append(ParsedTurn(path, dict.fromkeys(("speaker", "text"), (*path, speaker)), spoken, pause))
        elif model is not None:
            turns.append(_parsed_turn(model, entry, path, pause))
        pause = 0.0
    return turns, pause


def _parse_context(source: Source, entries: Sequence[Any] | None) -> list[ParsedTurn]:
    turns = []
    for index, entry in enumerate(entries or ()):
        model = validate_entry(schema.ContextEntry, source, entry, ("context", index))
        if model is not None:
            turns.append(_parsed_turn(model, entry, ("context", index)))
    _check_ids_are_unique(source, turns)
    return turns


def _parsed_turn(model: Any, entry: object, path: Keys, pause: float = 0.0) -> ParsedTurn:
    return ParsedTurn(path, {name: _field_path(entry, name, path) for name in schema.ALIASES}, model, pause)


def _parse_messages(source: Source, entries: Sequence[Any], speakers: SpeakerTable) -> list[ParsedTurn]:
    """The entries of `messages`; those with audio before the first without are context."""
    turns: list[ParsedTurn] = []
    is_context = True
    for index, entry in enumerate(entries):
        path: Keys = ("messages", index)
        message = validate_entry(schema.Message, source, entry, path)
        if message is None:
            continue
        role, content = (*path, "role"), (*path, "content")
        if message.role in _SYSTEM_ROLES and message.role not in speakers.entries:
            source.add_error(role, "a system prompt cannot be spoken; remove this message")
            continue
        items = message.content if isinstance(message.content, list) else []
        texts = [((*content, at, "text"), item.text) for at, item in enumerate(items) if item.type == "text"]
        clips = [((*content, at, "path"), item.path) for at, item in enumerate(items) if item.type == "audio"]
        if isinstance(message.content, str):
            texts = [(content, message.content)]
        if len(texts) != 1 or len(clips) > 1:
            source.add_error(content, f"expected one text and at most one audio, got {len(texts)} and {len(clips)}")
            continue
        is_context = is_context and bool(clips)
        text_path, text = texts[0]
        paths = {"speaker": role, "text": text_path}
        fields: dict[str, Any] = {"speaker": message.role, "text": text}
        kind: type[schema.SpokenEntry | schema.ContextEntry] = schema.SpokenEntry
        if clips:
            kind = schema.ExcludedEntry if is_context else schema.RecordedEntry
            paths["audio"], fields["audio"] = clips[0]
        turns.append(ParsedTurn(path, paths, kind.model_construct(**fields)))
    return turns


def _context_turns(source: Source, parsed: Iterable[ParsedTurn], speakers: SpeakerTable) -> tuple[Turn, ...]:
    return tuple(turn for each in parsed if (turn := _resolve_turn(source, each, speakers)))


def _resolve_turn(source: Source, parsed: ParsedTurn, speakers: SpeakerTable, index: int = 0) -> Turn | None:
    """The turn without its gap; None if speaker or audio are invalid. index: of the turn in its dialogue."""
    entry, paths = parsed.entry, parsed.paths
    if problem := speakers.problem(entry.speaker, source):
        source.add_error(paths["speaker"], problem, at_key=paths["speaker"] == paths["text"])
    comment = source.comments.get(paths["text"], "")
    if comment and (not comment.startswith((" ", "#")) or not entry.text.strip()):
        reason = f'"#{comment[:30]}" would be a comment'
        source.add_error(paths["text"], f"{reason}; put quotes around the text, or a space after # of a comment")
    elif comment and not source.has_named_comment:
        source.has_named_comment = True
        _LOG.warning('%s: comments after " #" are not spoken, such as "#%.30s"', source.file, comment)
    text = clean_text(entry.text).rstrip("\r\n")
    if not text.strip() and not comment:
        source.add_error(paths["text"], "expected text, got nothing")
    elif isinstance(entry, schema.SpokenEntry) and not is_speakable(text) and not comment:
        source.add_error(paths["text"], f"{quoted(entry.text.strip())} has nothing to speak; write words")
    elif isinstance(entry, schema.SpokenEntry) and (problem := pause_problem(text)):
        source.add_error(paths["text"], problem)
    recording, options = None, GenerationOptions()
    if isinstance(entry, schema.ContextEntry):
        recording = resolve_recording(source, entry.audio, paths["audio"], entry.start, entry.end)
    number = speakers.id_of(entry.speaker)
    if number is None or (isinstance(entry, schema.ContextEntry) and recording is None):
        return None
    declared = speakers.entries.get(entry.speaker)
    gain = (getattr(entry, "gain", None) or 0.0) + ((declared.gain or 0.0) if declared else 0.0)
    speed = 1.0
    if isinstance(entry, schema.SpokenEntry):
        speed = entry.speed or (declared.speed if declared else None) or 1.0
        defaults = declared.options() if declared else GenerationOptions()
        if defaults.seed is not None:  # each turn gets its own
            defaults = replace(defaults, seed=(defaults.seed + index) % 2**63)
        options = entry.options().over(defaults)
    return Turn(number, text, entry.speaker, entry.id or "", recording, gain=gain, speed=speed, options=options)


def _assign_ids(source: Source, header: ManifestHeader, parsed: Sequence[ParsedTurn]) -> None:
    """Gives names ids where the file declares no speakers; a number must not mean the same speaker as a name."""
    speakers = header.speakers
    names = [*(turn.name for turn in header.context), *(turn.entry.speaker for turn in parsed)]
    speakers.assign_ids(names)
    owners = {speakers.id_of(name): name for name in names if number_of(name) is None}
    for turn in parsed:
        number = number_of(turn.entry.speaker)
        if number is not None and not speakers.entries and (owner := owners.get(number)):
            message = f'{turn.entry.speaker} is the id that {quoted(owner)} got in this file; declare ids in "speakers"'
            source.add_error(turn.paths["speaker"], message)


def _check_ids_are_unique(source: Source, turns: Sequence[ParsedTurn]) -> None:
    owners: dict[str, ParsedTurn] = {}
    for turn in turns:
        if turn.entry.id and (owner := owners.setdefault(turn.entry.id, turn)) is not turn:
            message = f"{quoted(turn.entry.id)} is the id of {format_path(owner.path)} too"
            source.add_error(turn.paths["id"], message)


def _field_path(entry: object, name: str, path: Keys) -> Keys:
    """The path of the field `name` of the entry at `path`, under the alias it was written with."""
    written = entry if isinstance(entry, Mapping) else {}
    return (*path, next((each for each in (name, *schema.ALIASES.get(name, ())) if each in written), name))
