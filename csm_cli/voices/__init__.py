"""Saved voices: a clip of speech, its words and where it is from, under a name. A voice is a past turn."""

from csm_cli.voices.clip import PreparedClip, prepare_clip
from csm_cli.voices.codes import cached_codes
from csm_cli.voices.store import (
    SavedVoice,
    VoiceText,
    add_voice,
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
    "VoiceText",
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
