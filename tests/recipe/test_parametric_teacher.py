"""The parametric teacher: festival's HTS voice, what it says when, and its changed pitch."""

from __future__ import annotations

import shutil
from pathlib import Path

import librosa
import numpy as np
import pytest

from csm_cli.errors import CsmError
from csm_cli.recipe.natural_corpus import cut_utterance
from csm_cli.recipe.parametric_teacher import PARAMETRIC_VOICES, ParametricTeacher, VoiceTeachers
from csm_cli.recipe.teacher import TeacherRequest, TeacherSpeech

TEXT = 'Is "this" the right train, or not?'


def spoken(*requests: TeacherRequest) -> list[TeacherSpeech]:
    return list(VoiceTeachers(Path("nowhere")).speak(requests))


@pytest.mark.festival
def test_phonemes_and_their_durations_make_up_the_speech() -> None:
    (speech,) = spoken(TeacherRequest(TEXT, "hts_slt"))
    assert len(speech.durations) == len(speech.phonemes) + 2
    assert len(speech.samples) == sum(speech.durations) * 600
    assert speech.phonemes.split() == ["ɪz", "ðɪs", "ðə", "ɹIt", "tɹAn,", "ɔɹ", "nɑt?"]
    words = dict(cut_utterance(speech, 0)[0].words)  # byte of the text: frame of 80 ms
    assert sorted(words) == [0, 2, 3, 9, 10, 13, 14, 19, 20, 26, 27, 29, 30, 34]
    assert words[27] - words[26] > 1  # the pause after the comma
    loud = np.abs(speech.samples).reshape(-1, 600).max(axis=1) > 0.02
    assert not loud[: speech.durations[0] - 2].any() and loud[speech.durations[0] :][:4].any()


@pytest.mark.festival
def test_speed_voices_and_texts_without_words() -> None:
    requests = [TeacherRequest(TEXT, voice) for voice in PARAMETRIC_VOICES]
    requests[1:1] = [TeacherRequest(TEXT, "hts_slt", 1.25), TeacherRequest("...", "hts_slt")]
    high, quick, deep, low = spoken(*requests)
    assert len(quick.samples) == pytest.approx(len(high.samples) / 1.25, rel=0.05)
    pitches = [np.nanmedian(librosa.pyin(each.samples, fmin=60, fmax=400, sr=24_000)[0]) for each in (high, low, deep)]
    assert pitches[0] > 1.15 * pitches[1] > 1.15 * 1.15 * pitches[2]


def test_without_festival_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CsmError, match="apt install festival"):
        list(ParametricTeacher().speak([TeacherRequest(TEXT, "hts_slt")]))
