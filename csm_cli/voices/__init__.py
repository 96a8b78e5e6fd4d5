"""Saved voices: a clip of speech under a name, with its transcript, licence and source. A voice is a context turn."""

from csm_cli.voices.clip import PreparedClip, prepare_clip
from csm_cli.voices.store import (
    SavedVoice,
    VoiceInfo,
    add_voice,
    cached_codes,
    check_name,
    find_voice,
    is_name,
    list_voices,
    remove_voice,
    save_voice,
    similar_voices,
    voices_folder,
)

__all__ = [
    "PreparedClip",
    "SavedVoice",
    "VoiceInfo",
    "add_voice",
    "cached_codes",
    "check_name",
    "find_voice",
    "is_name",
    "list_voices",
    "prepare_clip",
    "remove_voice",
    "save_voice",
    "similar_voices",
    "voices_folder",
]
