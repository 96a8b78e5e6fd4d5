"""The voices that clients can name, clips they send, and the context turns that both give a speaker."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from threading import Lock

from torch import Tensor

from csm_cli.audio.clip_checks import clip_warnings, require_sound
from csm_cli.audio.decoders import AudioBytes
from csm_cli.audio.io import Audio, encode, read_audio
from csm_cli.errors import InputError, OutputRefused, VoiceNotFound
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.script.source import text_problem
from csm_cli.script.spoken_text import clean_text, is_speakable, pause_problem
from csm_cli.serve.limits import MAX_CLIP_SECONDS, MAX_CLIPS_CACHED, MAX_VOICES
from csm_cli.types import Turn
from csm_cli.voices.clip import prepare_clip
from csm_cli.voices.store import SavedVoice, VoiceInfo, add_voice, check_name, find_voice, is_name, list_voices

log = logging.getLogger(__name__)

# OpenAI's names, for clients that know no others. A saved voice of the same name goes before.
ALIASES = {
    "alloy": "birch",
    "ash": "ash",
    "ballad": "cedar",
    "cedar": "cedar",
    "coral": "birch",
    "echo": "ash",
    "fable": "cedar",
    "marin": "dune",
    "nova": "dune",
    "onyx": "ash",
    "sage": "birch",
    "shimmer": "dune",
    "verse": "cedar",
}


def resolve_voice(name: str) -> SavedVoice:
    """The saved voice of a name or an alias. Only names are looked up, never paths.

    Raises:
        VoiceNotFound: no such voice; the message lists some.
    """
    if not is_name(name):
        raise VoiceNotFound(f"{name[:80]!r} is not the name of a voice; see GET /v1/audio/voices")
    try:
        return find_voice(name)
    except VoiceNotFound:
        if name in ALIASES:
            return find_voice(ALIASES[name])
        raise


def check_text(name: str, text: str) -> str:
    """The text as it is spoken, without space around it.

    Raises:
        InputError: it is empty or cannot be spoken.
    """
    clean = clean_text(text).strip()
    problem = text_problem(clean) or pause_problem(clean) if is_speakable(clean) else "there is nothing to speak"
    if problem:
        raise InputError(f"{name}: {problem}")
    return clean


class ClipEncoder:
    """Encodes clips that clients send; the codes of the last ones are cached by digest."""

    def __init__(self, synth: Synthesizer) -> None:
        self._synth = synth
        self._codes: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str, data: bytes, max_seconds: float = MAX_CLIP_SECONDS) -> Audio:
        """The audio of a file in memory; its header is checked before it is decoded. Raises AudioUnreadable."""
        return read_audio(AudioBytes(name, data), self._synth.codec.rate, max_seconds=max_seconds)

    def codes(self, name: str, data: bytes) -> Tensor:
        """The codes [T, K]. Raises AudioUnreadable, for silence too."""
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if digest in self._codes:
                self._codes.move_to_end(digest)
                return self._codes[digest]
        clip = require_sound(self.read(name, data), name)
        for warning in clip_warnings(clip).values():
            log.warning("%s: %s", name, warning)
        codes = self._synth.encode(clip)
        with self._lock:
            self._codes[digest] = codes
            if len(self._codes) > MAX_CLIPS_CACHED:
                self._codes.popitem(last=False)
        return codes

    def as_wav(self, name: str, data: bytes) -> bytes:
        """The clip as an export has it, in 16 bits at the codec's rate, so that a script gives the same codes."""
        return encode(require_sound(self.read(name, data), name), "wav")

    def context(self, turn: Turn, name: str, data: bytes) -> tuple[Turn, Tensor]:
        """A context turn and its prompt tokens [S, K + 1]."""
        codes = self.codes(name, data)
        return turn, self._synth.prompt_builder.turn_tokens(turn.speaker, turn.text, codes)


def voice_choices() -> list[dict[str, str]]:
    """Every name that a request can give, saved voices first; objects, since Open WebUI reads nothing else."""
    names = dict.fromkeys([*(voice.name for voice in list_voices()), *ALIASES])
    return [{"id": name, "name": name} for name in names]


def voice_record(voice: SavedVoice) -> dict[str, object]:
    """A voice as clients see it."""
    aliases = [alias for alias, name in ALIASES.items() if name == voice.name and alias != name]
    return {
        "id": voice.name,
        "name": voice.name,
        "object": "voice",
        "bundled": voice.bundled,
        "text": voice.info.text,
        "license": voice.info.license,
        "aliases": aliases,
    }


def save_upload(name: str, audio: Audio, text: str, consent: str) -> tuple[SavedVoice, list[str]]:
    """Saves a clip as a voice; returns it and warnings about the clip.

    Raises:
        OutputRefused: a name that cannot be used or is taken. InputError: an unusable text. AudioUnreadable: no speech.
    """
    check_name(name)
    if len(list_voices()) >= MAX_VOICES:
        raise OutputRefused(f"there are {MAX_VOICES} voices already; remove some")
    clip, warnings = prepare_clip(audio, text)
    return add_voice(name, clip, VoiceInfo(text, license=consent, source="uploaded")), warnings
