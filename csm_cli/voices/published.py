"""Voices that a checkpoint's repository publishes on Hugging Face: clips in its folder `prompts`, and their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from csm_cli.checkpoint.find import OFFICIAL, HubRepository
from csm_cli.errors import VoiceNotFound
from csm_cli.voices.store import is_name

FOLDER = "prompts"
MAX_PUBLISHED = 100  # of one repository
_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
# What the clips of csm-1b say, as Sesame's demo of the model gives it (huggingface.co/spaces/sesame/csm-1b).
OFFICIAL_TEXTS = {
    "conversational_a": (
        "like revising for an exam I'd have to try and like keep up the momentum because I'd start really "
        "early I'd be like okay I'm gonna start revising now and then like you're revising for ages and then "
        "I just like start losing steam I didn't do that for the exam we had recently to be fair that was a "
        "more of a last minute scenario but like yeah I'm trying to like yeah I noticed this yesterday that "
        "like Mondays I sort of start the day with this not like a panic but like a"
    ),
    "conversational_b": (
        "like a super Mario level. Like it's very like high detail. And like, once you get into the park, it "
        "just like, everything looks like a computer game and they have all these, like, you know, if, if "
        "there's like a, you know, like in a Mario game, they will have like a question block. And if you "
        "like, you know, punch it, a coin will come out. So like everyone, when they come into the park, they "
        "get like this little bracelet and then you can go punching question blocks around."
    ),
    "read_speech_a": (
        "And Lake turned round upon me, a little abruptly, his odd yellowish eyes, a little like those of the "
        "sea eagle, and the ghost of his smile that flickered on his singularly pale face, with a stern and "
        "insidious look, confronted me."
    ),
    "read_speech_b": (
        "He was such a big boy that he wore high boots and carried a jack knife. He gazed and gazed at the "
        "cap, and could not keep from fingering the blue tassel."
    ),
    "read_speech_c": (
        "All passed so quickly, there was so much going on around him, the Tree quite forgot to look to himself."
    ),
    "read_speech_d": (
        "Suddenly I was back in the old days Before you felt we ought to drift apart. It was some trick-the "
        "way your eyebrows raise."
    ),
}


@dataclass(frozen=True)
class PublishedVoice:
    """A clip in a repository. file: its path there; text: its words, empty where they are not known."""

    name: str
    file: str
    path: Path
    text: str
    source: str


def find_published(repository: HubRepository, names: Sequence[str] = ()) -> list[PublishedVoice]:
    """The clips of a repository, or those with these names, downloaded into the hub's cache.

    Raises:
        VoiceNotFound: it publishes none, or none of a name.
        ModelNotFound, ModelGated, ModelOffline: as `HubRepository.find`.
    """
    files = {
        voice_name(file): file
        for file in repository.files(FOLDER)
        if PurePosixPath(file).suffix.lower() in _SUFFIXES and is_name(voice_name(file))
    }
    if not files:
        raise VoiceNotFound(f"{repository.name} publishes no voices (no clips in {FOLDER}/); name {OFFICIAL}")
    if unknown := [name for name in names if name not in files]:
        raise VoiceNotFound(f"{repository.name} publishes no voice {unknown[0]!r}; it has {', '.join(sorted(files))}")
    found = []
    for name in names or sorted(files)[:MAX_PUBLISHED]:
        path = repository.find(files[name])
        if path is None:
            raise VoiceNotFound(f"{repository.name} has no {files[name]} any more; pull again")
        source = f"{files[name]} of {repository.name} at {repository.revision}"
        found.append(PublishedVoice(name, files[name], path, _text(repository, name, files[name]), source))
    return found


def voice_name(file: str) -> str:
    """The name under which a clip is saved: of its file, with what a name cannot have as an underscore."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(file).stem).strip("_-")[:64]


def _text(repository: HubRepository, name: str, file: str) -> str:
    """The words of a clip: known ones, or those of a .txt file beside it."""
    if repository.name == OFFICIAL and name in OFFICIAL_TEXTS:
        return OFFICIAL_TEXTS[name]
    transcript = repository.find(str(PurePosixPath(file).with_suffix(".txt")))
    if transcript is None:
        return ""
    from csm_cli.script.files import read_transcript

    return " ".join(read_transcript(transcript).split())
