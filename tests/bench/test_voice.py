"""`csm bench voice`: its figures with a fake recognizer, and what is missing without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.run import Result

from csm_cli.audio.io import Audio
from csm_cli.bench import voice
from csm_cli.generation import verification

Csm = Callable[..., Result]
FIGURES = ("word_error_rate", "clean_stops", "rtf", "pitch_spread_semitones", "mos")


def tone(*pitches: float) -> Audio:
    """Half a second of each pitch."""
    times = np.arange(12_000) / 24_000
    waves = [sum(np.sin(2 * np.pi * n * pitch * times) / n for n in range(1, 6)) for pitch in pitches]
    return Audio(0.2 * np.concatenate(waves).astype(np.float32), 24_000)


@pytest.fixture
def recognizer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces Whisper by one that hears the expected sentence, or "wrong words" once the list is empty."""
    transcripts = voice.held_out_sentences()[:2]

    class Fake:
        def __init__(self, name: str) -> None:
            assert name == "some-model"

        def transcribe(self, audio: Audio) -> str:
            return transcripts.pop(0) if transcripts else "wrong words"

    monkeypatch.setattr(verification, "WhisperRecognizer", Fake)
    return transcripts


def run(csm: Csm, checkpoint: Path, count: int) -> Result:
    return csm("bench", "voice", "--model", checkpoint, "--sentences", count, "--verify-model", "some-model", "--json")


@pytest.mark.usefixtures("recognizer")
def test_perfect_transcripts_have_no_word_errors(csm: Csm, tiny_checkpoint: Path) -> None:
    result = run(csm, tiny_checkpoint, 2)
    assert result.code == 0, result.err
    figures = result.json
    assert (figures["bench"], figures["sentences"], figures["word_error_rate"]) == ("voice", 2, 0.0)
    assert 0 <= figures["clean_stops"] <= 1 and figures["rtf"] > 0
    assert set(FIGURES) <= figures.keys() and not result.err


@pytest.mark.usefixtures("recognizer")
def test_wrong_transcripts_count_by_their_words(csm: Csm, tiny_checkpoint: Path) -> None:
    assert 0 < run(csm, tiny_checkpoint, 3).json["word_error_rate"] < 1


@pytest.mark.usefixtures("recognizer")
def test_silence_has_no_pitch(csm: Csm, silent_checkpoint: Path) -> None:
    figures = run(csm, silent_checkpoint, 1).json
    assert figures["pitch_spread_semitones"] is None


def test_pitch_spread_is_in_semitones() -> None:
    assert voice.pitch_spread(tone(200.0)) == pytest.approx(0, abs=0.2)
    assert voice.pitch_spread(tone(150.0, 300.0)) == pytest.approx(6, abs=0.8)  # an octave
    assert voice.pitch_spread(Audio(np.zeros(24_000, np.float32), 24_000)) is None


@pytest.mark.usefixtures("recognizer")
def test_mos_is_estimated_if_distillmos_is_installed(
    csm: Csm, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judge(torch.nn.Module):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            assert samples.ndim == 2 and samples.dtype == torch.float32
            return torch.tensor([[3.5]])

    module = ModuleType("distillmos")
    module.ConvTransformerSQAModel = Judge  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "distillmos", module)
    monkeypatch.setattr(voice, "find_spec", lambda name: name)
    assert run(csm, tiny_checkpoint, 2).json["mos"] == 3.5


def test_missing_recognizer_is_a_usage_error(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    result = csm("bench", "voice")
    assert result.code == 2 and "csm-cli[verify]" in result.err


def test_there_are_200_held_out_sentences() -> None:
    sentences = voice.held_out_sentences()
    assert len(set(sentences)) == 200 and all(20 <= len(each) <= 70 for each in sentences)
