"""Speakers of a script: the ids the model reads, gains, options and voice prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from csm_cli.errors import Diagnostic, ModelError, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.files import read_text
from csm_cli.script.source import Keys, Source, format_path, quoted, text_problem
from csm_cli.script.validate import suggestion, validate_entry
from csm_cli.types import Recording, Turn
from csm_cli.voices import find_voice, is_name

MAX_SPEAKERS = 1000
_NUMBER = re.compile(r"[+-]?\d[\d.]*")

SpeakerEntry = schema.SpeakerFields | schema.ManifestLine


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

    def problem(self, name: str) -> str:
        """Why `name` cannot be the speaker of a turn; empty if it can or if its entry has a diagnostic already."""
        if not self.known or name in self.entries or (not self.entries and self.id_of(name) is not None):
            return ""
        if self.entries:
            guess = suggestion(name, self.entries) if len(self.entries) > 8 else None
            hint = f'did you mean "{guess}"?' if guess else "speakers: " + ", ".join(list(self.entries)[:8])
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


def voice_turn(source: Source, entry: SpeakerEntry, speaker: tuple[int, str], path: Keys) -> Turn | None:
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
            text = read_text(transcript)
        except ScriptInvalid as invalid:
            source.diagnostics.extend(invalid.diagnostics)
            return None
    problem = text_problem(text) if text.strip() else "the text of the voice is empty"
    if problem:
        source.add_error(text_path, problem)
        return None
    return Turn(speaker=speaker[0], text=text.strip(), name=speaker[1], recording=recording)
