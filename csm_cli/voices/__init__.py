"""Saved voices: a clip of speech, its words and where it is from, under a name. A voice is a past turn."""

from csm_cli.voices.clip import Clip, prepare
from csm_cli.voices.codes import kept_codes
from csm_cli.voices.store import (
    Voice,
    Words,
    add_voice,
    check_name,
    find_voice,
    is_name,
    list_voices,
    near_voices,
    remove_voice,
    save_voice,
    voices_folder,
)

__all__ = [
    "Clip",
    "Voice",
    "Words",
    "add_voice",
    "check_name",
    "find_voice",
    "is_name",
    "kept_codes",
    "list_voices",
    "near_voices",
    "prepare",
    "remove_voice",
    "save_voice",
    "voices_folder",
]
