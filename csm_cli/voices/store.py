"""Saved voices as folders, `NAME/audio.flac` and `NAME/voice.json`, and a cache of their codes; some are bundled."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.errors import AudioUnreadable, OutputFailed, OutputRefused, VoiceInvalid, VoiceNotFound
from csm_cli.storage.files import exclusive_lock, write_atomically
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.folders import check_replaceable, recover_folders, remove_folder, replace_folder
from csm_cli.storage.paths import user_data_folder
from csm_cli.storage.untrusted import read_json
from csm_cli.types import Recording, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from csm_cli.audio.io import Audio

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_AUDIO, _INFO = "audio.flac", "voice.json"
_LOCK_SECONDS = 20.0  # for another process that saves or removes a voice


@dataclass(frozen=True)
class VoiceInfo:
    """The transcript of a clip, the licence or consent under which it may be used, and its source."""

    text: str
    license: str = ""
    source: str = ""


@dataclass(frozen=True)
class SavedVoice:
    """A saved voice: a clip of speech in `audio` (FLAC, mono), and what is known about it."""

    name: str
    folder: Path
    info: VoiceInfo
    bundled: bool = False

    @property
    def audio(self) -> Path:
        return self.folder / _AUDIO

    def turn(self, speaker: int, name: str = "") -> Turn:
        """The context turn that gives `speaker` this voice."""
        return Turn(speaker, self.info.text, name, recording=Recording(self.audio, voice=self.name))


def voices_folder() -> Path:
    """The folder of the user's own voices."""
    return user_data_folder() / "voices"


def is_name(text: str) -> bool:
    """Whether `text` can be a voice's name; a path with a suffix or a folder cannot."""
    return _NAME.fullmatch(text) is not None


def list_voices() -> list[SavedVoice]:
    """Every saved voice by name, the bundled ones first. Folders without a voice are skipped.

    A voice that cannot be read is skipped with a warning: the others can be used.
    """
    found = []
    for folder, bundled in _voice_folders():
        try:
            found.append(_read(folder, bundled))
        except VoiceInvalid as problem:
            _LOG.warning("%s", problem)
    return found


def find_voice(name: str) -> SavedVoice:
    """The voice of this name.

    Raises:
        VoiceNotFound: no such voice; the message has similar names.
        VoiceInvalid: its files cannot be used.
    """
    if is_name(name):
        recover_folders(voices_folder())
        for parent, bundled in _locations():
            if (parent / name / _INFO).is_file():
                return _read(parent / name, bundled)
    raise VoiceNotFound(f"no voice {name!r}; {similar_voices(name)}")


def similar_voices(name: str) -> str:
    """A hint for a message about an unknown voice: similar names, else the first few saved ones."""
    names = [folder.name for folder, _ in _voice_folders()]
    similar = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    return f"saved voices: {', '.join(names[:8])}" if names else "no voices are saved; see `csm voices add --help`"


def check_name(name: str, replace: bool = False) -> None:
    """Refuses a name under which no voice can be saved.

    Raises:
        OutputRefused: an invalid name, a bundled voice's, or a saved one's where `replace` is false.
    """
    if not is_name(name):
        raise OutputRefused(f"{name!r} cannot name a voice; use up to 64 letters, digits, - and _")
    if any(name == folder.name for folder, bundled in _voice_folders() if bundled):
        raise OutputRefused(f"{name!r} is the name of a bundled voice; choose another")
    if (voices_folder() / name).exists() and not replace:
        raise OutputRefused(f"there is a voice {name!r} already; add --replace to replace it")


def add_voice(name: str, audio: Audio, info: VoiceInfo, replace: bool = False) -> SavedVoice:
    """Saves a voice; of several processes that add the same name, one does.

    Raises:
        OutputRefused: as `check_name`, and as `save_voice`. UsageError: another process saves voices for too long.
    """
    with _voices_lock():
        check_name(name, replace)
        return save_voice(voices_folder() / name, audio, info)


def save_voice(folder: Path, audio: Audio, info: VoiceInfo) -> SavedVoice:
    """Writes a voice's folder, named as the voice, atomically.

    Raises:
        OutputRefused: the folder cannot be made, or holds files that csm did not write there.
        OutputFailed: the disk is full or failed.
    """
    from csm_cli.audio.io import write_audio

    with replace_folder(folder, "voice", known=(_AUDIO, _INFO)) as fresh:
        write_audio(fresh / _AUDIO, audio)
        write_atomically(fresh / _INFO, (json.dumps(asdict(info), ensure_ascii=False, indent=2) + "\n").encode())
    return SavedVoice(folder.name, folder, info)


def remove_voice(name: str) -> SavedVoice:
    """Removes a saved voice and its codes.

    Raises:
        VoiceNotFound: no such voice. OutputFailed: it could not be removed.
        OutputRefused: it is bundled, or its folder holds files that csm did not write there.
    """
    with _voices_lock():
        voice = find_voice(name)
        if voice.bundled:
            raise OutputRefused(f"{name!r} is bundled with csm and cannot be removed")
        check_replaceable(voice.folder, "voice", known=(_AUDIO, _INFO))
        try:
            for file in _codes_folder().glob(f"{_clip_fingerprint(voice.audio)}-*.npy"):
                file.unlink(missing_ok=True)
            remove_folder(voice.folder)
        except OSError as error:
            raise OutputFailed(f"{voice.folder}: could not be removed ({error.strerror})") from error
    return voice


def _voices_lock() -> AbstractContextManager[None]:
    return exclusive_lock(voices_folder(), wait=_LOCK_SECONDS, temporary=True)


def cached_codes(
    audio: Path, codec: str, sizes: tuple[int, int], encode: Callable[[], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The codes [T, K] of a clip, from the cache, else from `encode` and then cached.

    codec: its fingerprint. sizes: K and the number of codes; a file of another shape or range is made again.

    Raises:
        AudioUnreadable: the clip cannot be read.
    """
    from csm_cli.audio.codes import read_codes, write_codes

    file = _codes_folder() / f"{_clip_fingerprint(audio)}-{codec}.npy"
    try:
        return read_codes(file, *sizes)
    except (OSError, ValueError):  # not cached, or damaged
        codes = encode()
    try:
        write_atomically(file, write_codes(codes))
    except (OutputRefused, OutputFailed) as error:
        _LOG.warning("the voice's codes are not cached: %s", error)
    return codes


def _codes_folder() -> Path:
    return user_data_folder() / "codes"


def _clip_fingerprint(audio: Path) -> str:
    try:
        return fingerprint(audio, length=16)
    except OSError as error:
        raise AudioUnreadable(f"{audio}: {error.strerror}; add the voice again") from error


def _locations() -> tuple[tuple[Path, bool], ...]:
    """The folders that hold voices, and whether they are bundled."""
    return (Path(str(resources.files("csm_cli") / "assets" / "voices")), True), (voices_folder(), False)


def _voice_folders() -> list[tuple[Path, bool]]:
    recover_folders(voices_folder())
    return [
        (folder, bundled)
        for parent, bundled in _locations()
        for folder in (sorted(parent.iterdir()) if parent.is_dir() else ())
        if is_name(folder.name) and (folder / _INFO).is_file()
    ]


def _read(folder: Path, bundled: bool) -> SavedVoice:
    from csm_cli.script.source import text_problem

    path = folder / _INFO
    try:
        info = VoiceInfo(**read_json(path))
        if not all(isinstance(value, str) for value in asdict(info).values()):
            raise ValueError("its values are not all texts")
        if problem := text_problem(info.text) if info.text.strip() else "it has no text":
            raise ValueError(problem)
    except (OSError, ValueError, TypeError) as error:
        raise VoiceInvalid(f"{path}: does not describe a voice ({error}); remove {folder} and add it again") from error
    if not (folder / _AUDIO).is_file():
        raise VoiceInvalid(f"{folder / _AUDIO}: the voice's clip is missing; remove {folder} and add it again")
    return SavedVoice(folder.name, folder, info, bundled)
