"""The voices a bundled voice was made from, as its teacher speaks them: what generated speech is compared with.

A checkpoint folder names them in `voices.json`; without that file they are espeak-ng's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from csm_cli.errors import CsmError
from csm_cli.recipe.corpus import VOICES
from csm_cli.recipe.measure import Reference, Samples
from csm_cli.recipe.natural_corpus import cut_utterance
from csm_cli.recipe.parametric_teacher import PARAMETRIC_VOICES, VoiceTeachers
from csm_cli.recipe.teacher import Teacher, TeacherRequest

VOICES_FILE = "voices.json"


class ReferenceVoices(Protocol):
    """A teacher's voices, in the order of their numbers. Speaker n has voice n without context."""

    names: tuple[str, ...]

    def render(self, texts: Sequence[tuple[str, int]]) -> list[Samples]:
        """Samples at 24 kHz, in whole frames, of each (text, voice)."""
        ...


class EspeakVoices:
    """The monotone voices of espeak-ng's corpus."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.names = tuple(voice.name for voice in VOICES)

    def render(self, texts: Sequence[tuple[str, int]]) -> list[Samples]:
        return [self._reference.speech(text, VOICES[voice]) for text, voice in texts]


class TeacherVoices:
    """Voices of a plan's teachers, cut like their corpus."""

    def __init__(self, teacher: Teacher, names: Sequence[str]) -> None:
        self._teacher = teacher
        self.names = tuple(names)

    def render(self, texts: Sequence[tuple[str, int]]) -> list[Samples]:
        """Raises CsmError where the teacher leaves out a text."""
        requests = [TeacherRequest(text, self.names[voice]) for text, voice in texts]
        spoken = [cut_utterance(speech, 0)[1] for speech in self._teacher.speak(requests)]
        if len(spoken) != len(requests):
            raise CsmError(f"the teacher spoke {len(spoken)} of {len(requests)} texts")
        return [samples.astype(np.float32) / np.float32(32768) for samples in spoken]


def write_voices(folder: Path, names: Sequence[str]) -> None:
    """Records in a checkpoint folder which of the teachers' voices it was made from."""
    (folder / VOICES_FILE).write_text(json.dumps({"voices": list(names)}) + "\n")


def reference_voices(folder: Path, tools: Path) -> ReferenceVoices:
    """The voices of the checkpoint in `folder`; tools: where the natural teacher is set up.

    Raises:
        CsmError: the teacher is not installed.
    """
    path = folder / VOICES_FILE
    if not path.exists():
        return EspeakVoices(Reference())
    teachers, names = VoiceTeachers(tools), json.loads(path.read_text())["voices"]
    if not teachers.natural.is_set_up and not set(names) <= PARAMETRIC_VOICES.keys():
        raise CsmError(f"the teacher is not set up; run python -m csm_cli.recipe.teacher {tools}")
    return TeacherVoices(teachers, names)
