"""Whisper itself (tiny.en, which `make recognizer` brings): what --verify catches, and how exact --word-times is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csm_cli.audio.io import Audio, read_audio
from csm_cli.generation.events import Utterance
from csm_cli.generation.take import Take, TakeBuilder
from csm_cli.generation.verification import WhisperRecognizer, apply_transcription
from csm_cli.generation.word_times import time_words
from csm_cli.recipe.corpus import Espeak, EspeakVoice
from csm_cli.types import Conversation, Turn

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runs" / "recognizer" / "tiny.en"
CLIP = ROOT / "csm_cli" / "assets" / "voices" / "ash" / "audio.flac"
TEXT = str(json.loads(CLIP.with_name("voice.json").read_text())["text"])
RATE = 24_000
Samples = NDArray[np.float32]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.exists(), reason="Whisper tiny.en is not there: make recognizer"),
]


@pytest.fixture(scope="module")
def whisper() -> WhisperRecognizer:
    return WhisperRecognizer(str(MODEL), "en")


@pytest.fixture(scope="module")
def speech() -> Samples:
    """A clip of clear speech, 5.6 s."""
    return read_audio(CLIP, RATE).samples


def test_good_speech_is_accepted(whisper: WhisperRecognizer, speech: Samples) -> None:
    assert not fault(whisper, speech)


@pytest.mark.parametrize(
    "damage",
    [
        lambda clip: np.concatenate((clip[: 2 * RATE], clip[4 * RATE :])),
        lambda clip: clip[: len(clip) // 2],
        lambda clip: np.random.default_rng(1).normal(0, 0.1, len(clip)).astype(np.float32),
        lambda clip: np.zeros_like(clip),
        lambda clip: read_audio(CLIP.parents[1] / "birch" / "audio.flac", RATE).samples,
    ],
    ids=["words dropped", "cut off", "noise", "silence", "another sentence"],
)
def test_bad_takes_are_caught(
    whisper: WhisperRecognizer, speech: Samples, damage: Callable[[Samples], Samples]
) -> None:
    assert fault(whisper, damage(speech))


def fault(whisper: WhisperRecognizer, samples: Samples) -> str:
    take = Take(np.zeros((1, 4)), samples, "eos", 1, "")  # type: ignore[arg-type]  # its codes are not looked at
    return apply_transcription(take, whisper.transcribe(Audio(samples, RATE)), [TEXT]).fault


def test_say_retries_a_take_with_other_words(
    csm: Callable[..., Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
    speech: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A take of the first half of the words, then one with all of them."""
    spoken = [speech[: len(speech) // 2], speech]

    class Prepared(TakeBuilder):
        def finish(self, stop: str) -> Take:
            return replace(super().finish("eos"), samples=spoken.pop(0), stop="eos", fault="")

    monkeypatch.setattr("csm_cli.generation.synthesizer.TakeBuilder", Prepared)
    flags = ("--verify", "--verify-model", MODEL, "--temperature", "1", "--max-duration", "0.4", "--split", "off")
    words = ("--word-times", "--subs", "vtt", "--json")
    result = csm("say", TEXT, "--model", tiny_checkpoint, "-o", tmp_path / "a.wav", *flags, *words)
    assert result.code == 0, result.err
    (turn,) = result.json["turns"]
    assert [bool(take["fault"]) for take in turn["takes"]] == [True, False]
    assert turn["takes"][1]["word_error_rate"] == 0
    timed = turn["segments"][0]["words"]
    assert [word["text"] for word in timed] == TEXT.split() and all(word["recognized"] for word in timed)
    assert (tmp_path / "a.vtt").read_text().count("<00:") == len(timed)


@pytest.mark.espeak
def test_words_start_where_espeak_says_they_do(whisper: WhisperRecognizer) -> None:
    """Its events come up to 85 ms before the sound; those of natural speech are in docs/audio.md."""
    made = Espeak().speak(TEXT, EspeakVoice("en-us"))
    turn = Turn(0, TEXT)
    samples = made.samples.astype(np.float32) / 32768
    utterance = Utterance(Conversation((turn,)), turn, np.zeros((0, 0), np.int64), Audio(samples, made.rate), "eos")
    (timed,) = time_words([utterance], whisper)
    starts = {place: sample / made.rate for place, sample in made.words}
    places = [word.start() for word in re.finditer(r"\S+", TEXT)]
    errors = [
        abs(word.start - starts[place])
        for place, word in zip(places, timed.segments[0].words, strict=True)
        if place in starts
    ]
    assert len(errors) > 15 and median(errors) < 0.15 and sorted(errors)[round(0.9 * len(errors))] < 0.3
