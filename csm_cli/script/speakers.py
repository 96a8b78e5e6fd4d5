"""Who speaks: declared speakers with their numbers, gains and voices, or bare numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from csm_cli.errors import Diagnostic, ModelError, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.source import Keys, Source, as_written, quoted, read_text, text_problem
from csm_cli.script.validate import suggestion, validate_entry
from csm_cli.types import Recording, Turn
from csm_cli.voices import find_voice, is_name

SpeakerEntry = schema.SpeakerFields | schema.ManifestLine


@dataclass(frozen=True)
class SpeakerTable:
    """Speakers by name, None for one declared wrongly; where none is declared, numbers are names.

    voices: the voice prompt of each speaker that has one, as a past turn. known: the declaration could be read.
    """

    speakers: Mapping[str, schema.SpeakerFields | None] = field(default_factory=dict)
    voices: Mapping[str, Turn] = field(default_factory=dict)
    known: bool = True

    def number(self, name: str) -> int | None:
        """The number the model reads for `name`; None where there is none."""
        if self.speakers:
            speaker = self.speakers.get(name)
            return speaker.id if speaker else None
        return int(name) if re.fullmatch(r"[0-9]{1,3}", name) else None

    def diagnostic(self, name: str) -> str:
        """What is wrong with `name` as a speaker; empty where nothing is, or where its declaration already is wrong."""
        if not self.known or name in self.speakers:
            return ""
        if not self.speakers:
            numbered = self.number(name) is not None
            return "" if numbered else f"expected a speaker's number, as no speakers are declared, got {quoted(name)}"
        guess = suggestion(name, self.speakers) if len(self.speakers) > 8 else None
        names = f'did you mean "{guess}"?' if guess else "speakers: " + ", ".join(list(self.speakers)[:8])
        return f'"{name}" is not declared; {names}' if len(name) <= 60 else f"{quoted(name)} is not declared; {names}"


def read_speakers(source: Source, speakers: Mapping[str, object], path: Keys) -> SpeakerTable:
    """Checks the `speakers` of a script."""
    if not speakers:
        source.add_error(path, "no speakers are declared; leave it out to use numbers")
    models = {
        name: validate_entry(schema.SpeakerFields, source, entry, (*path, name)) for name, entry in speakers.items()
    }
    owners: dict[int, str] = {}
    for name, speaker in models.items():
        if name in schema.TURN_FIELDS or not name.strip():
            source.add_error((*path, name), "cannot be the name of a speaker; choose another", at_key=True)
        owner = owners.setdefault(speaker.id, name) if speaker else name
        if speaker and owner != name:
            source.add_error((*path, name, "id"), f"{speaker.id} is taken by {quoted(owner)}")
    voices = {
        name: voice_turn(source, speaker, (speaker.id, name), (*path, name))
        for name, speaker in models.items()
        if speaker
    }
    return SpeakerTable(models, {name: voice for name, voice in voices.items() if voice})


def resolve_recording(
    source: Source, audio: str, at: Keys, part: tuple[float | None, float | None] = (None, None)
) -> Recording | None:
    """The file `audio`, written at path `at`, from part[0] to part[1] seconds; None and a diagnostic if unusable."""
    found = source.files.find(audio)
    if found is None:
        hint = "; download it first" if "://" in audio else ""
        source.add_error(at, f"no such file: {audio}{hint}")
        return None
    trouble = source.files.trouble(found, *part)
    if trouble:
        source.diagnostics.append(Diagnostic(audio, 0, 0, as_written(at), trouble))
        return None
    return Recording(found, *part)


def voice_turn(source: Source, given: SpeakerEntry, who: tuple[int, str], path: Keys) -> Turn | None:
    """The past turn by which a speaker, number and name, gets the voice that the entry at `path` gives it."""
    text = given.voice_text
    if given.voice is None:
        if text is not None:
            source.add_error((*path, "voice_text"), 'has no effect without "voice"')
        return None
    if is_name(given.voice) and source.files.find(given.voice) is None:
        return _saved(source, given, who, path)
    clip = resolve_recording(source, given.voice, (*path, "voice"))
    if clip is None:
        return None
    text = text if text is not None else _transcript(source, clip, path)
    if text is None:
        return None
    trouble = text_problem(text) if text.strip() else "the voice's text is empty"
    if trouble:
        source.add_error((*path, "voice_text" if given.voice_text is not None else "voice"), trouble)
        return None
    return Turn(speaker=who[0], text=text.strip(), name=who[1], recording=clip)


def _saved(source: Source, given: SpeakerEntry, who: tuple[int, str], path: Keys) -> Turn | None:
    try:
        voice = find_voice(str(given.voice))
    except ModelError as error:
        source.add_error((*path, "voice"), str(error))
        return None
    if given.voice_text is not None:
        source.add_error((*path, "voice_text"), "has no effect on a saved voice, which has its words; leave it out")
    return voice.turn(*who)


def _transcript(source: Source, clip: Recording, path: Keys) -> str | None:
    beside = clip.path.with_suffix(".txt")
    if not beside.exists():
        source.add_error(
            (*path, "voice"), f'its words are missing; write them in "voice_text" or in {beside.name} beside it'
        )
        return None
    try:
        return read_text(beside)
    except ScriptInvalid as invalid:
        source.diagnostics.extend(invalid.diagnostics)
        return None
