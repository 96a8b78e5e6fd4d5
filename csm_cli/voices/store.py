"""The folder of saved voices: `NAME/audio.flac` and `NAME/voice.json`; those that are bundled lie in the package."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.errors import OutputFailed, OutputRefused, VoiceInvalid, VoiceNotFound
from csm_cli.storage.files import remove_folder, replace_folder, write_atomically
from csm_cli.storage.paths import user_data_folder
from csm_cli.types import Recording, Turn
from csm_cli.voices.codes import remove_codes

if TYPE_CHECKING:
    from csm_cli.audio.io import Audio

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_AUDIO, _CARD = "audio.flac", "voice.json"


@dataclass(frozen=True)
class VoiceText:
    """What a clip says, the licence or consent under which it may be used, and where it is from."""

    text: str
    license: str = ""
    source: str = ""


@dataclass(frozen=True)
class SavedVoice:
    """A saved voice: speech in `audio` (FLAC, mono), and its words."""

    name: str
    folder: Path
    words: VoiceText
    bundled: bool = False

    @property
    def audio(self) -> Path:
        return self.folder / _AUDIO

    def turn(self, speaker: int, name: str = "") -> Turn:
        """The past turn by which `speaker` gets this voice."""
        return Turn(speaker, self.words.text, name, recording=Recording(self.audio, voice=self.name))


def voices_folder() -> Path:
    """Where the user's own voices lie."""
    return user_data_folder() / "voices"


def is_name(text: str) -> bool:
    """Whether `text` can be a voice's name, which no path with a suffix or folder can."""
    return _NAME.fullmatch(text) is not None


def list_voices() -> list[SavedVoice]:
    """Every saved voice by name, the bundled ones first; folders that hold none are passed over.

    Raises:
        VoiceInvalid: a voice's card cannot be read.
    """
    found = [(folder, bundled) for home, bundled in _homes() for folder in _folders(home)]
    return [_read(folder, bundled) for folder, bundled in found]


def find_voice(name: str) -> SavedVoice:
    """The voice of this name.

    Raises:
        VoiceNotFound: there is none; says which are near.
        VoiceInvalid: its files cannot be used.
    """
    if is_name(name):
        for home, bundled in _homes():
            if (home / name / _CARD).is_file():
                return _read(home / name, bundled)
    raise VoiceNotFound(f"no voice {name!r}; {similar_voices(name)}")


def similar_voices(name: str) -> str:
    """What to tell of the voices there are to somebody who asked for another."""
    names = _names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"saved voices: {', '.join(names[:8])}" if names else "no voices are saved; see `csm voices add --help`"


def check_name(name: str, replace: bool = False) -> None:
    """Refuses a name under which nothing can be saved.

    Raises:
        OutputRefused: no name, a bundled voice's, or a saved one's where `replace` is false.
    """
    if not is_name(name):
        raise OutputRefused(f"{name!r} cannot name a voice; use up to 64 letters, digits, - and _")
    if any(name == folder.name for folder in _folders(_bundled())):
        raise OutputRefused(f"{name!r} is the name of a bundled voice; choose another")
    if (voices_folder() / name).exists() and not replace:
        raise OutputRefused(f"there is a voice {name!r} already; add --replace to replace it")


def add_voice(name: str, audio: Audio, words: VoiceText, replace: bool = False) -> SavedVoice:
    """Saves a voice; raises OutputRefused as `check_name`, and as `save_voice`."""
    check_name(name, replace)
    return save_voice(voices_folder() / name, audio, words)


def save_voice(folder: Path, audio: Audio, words: VoiceText) -> SavedVoice:
    """Writes a voice's folder, named as the voice: it appears whole or not at all, in the place of one before.

    Raises:
        OutputRefused: the folder cannot be made.
        OutputFailed: the disk is full or failed.
    """
    from csm_cli.audio.io import write_audio

    with replace_folder(folder) as fresh:
        write_audio(fresh / _AUDIO, audio)
        write_atomically(fresh / _CARD, (json.dumps(asdict(words), ensure_ascii=False, indent=2) + "\n").encode())
    return SavedVoice(folder.name, folder, words)


def remove_voice(name: str) -> SavedVoice:
    """Removes a saved voice.

    Raises:
        VoiceNotFound: there is none. OutputRefused: it is bundled. OutputFailed: it could not be removed.
    """
    voice = find_voice(name)
    if voice.bundled:
        raise OutputRefused(f"{name!r} is bundled with csm and stays")
    try:
        remove_codes(voice.audio)
        remove_folder(voice.folder)
    except OSError as error:
        raise OutputFailed(f"{voice.folder}: could not be removed ({error.strerror})") from error
    return voice


def _bundled() -> Path:
    return Path(str(resources.files("csm_cli") / "assets" / "voices"))


def _homes() -> tuple[tuple[Path, bool], ...]:
    return ((_bundled(), True), (voices_folder(), False))


def _folders(home: Path) -> list[Path]:
    entries = home.iterdir() if home.is_dir() else ()
    return sorted(entry for entry in entries if is_name(entry.name) and (entry / _CARD).is_file())


def _names() -> list[str]:
    return [folder.name for home, _ in _homes() for folder in _folders(home)]


def _read(folder: Path, bundled: bool) -> SavedVoice:
    card = folder / _CARD
    try:
        words = VoiceText(**json.loads(card.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise VoiceInvalid(f"{card}: is not a voice's card ({problem}); remove {folder} and add it again") from problem
    if not (folder / _AUDIO).is_file():
        raise VoiceInvalid(f"{folder / _AUDIO}: the voice's clip is missing; remove {folder} and add it again")
    return SavedVoice(folder.name, folder, words, bundled)
