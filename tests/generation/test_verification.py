"""Takes compared with their text; faster-whisper is replaced by a fake."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from csm_cli.audio.io import Audio
from csm_cli.errors import ModelNotFound, UsageError
from csm_cli.generation import verification
from csm_cli.generation.take import Take
from csm_cli.generation.verification import WhisperRecognizer, apply_transcription, compare

TAKE = Take(torch.zeros(1, 4), np.zeros(1920, np.float32), "eos", 1, "")


@pytest.mark.parametrize(
    ("text", "heard", "rate", "run"),
    [
        ("Hello there.", "hello THERE", 0.0, 0),
        ("Dr. Smith paid $3.50.", "Doctor Smith paid three dollars and fifty cents", 0.0, 0),
        ("one red cat and two dogs", "one red hat and two dogs", 1 / 6, 1),
        ("I can see a tree here", "I can here", 0.5, 3),
        ("I can see", "I can see what was never written", 4 / 3, 4),
        ("Good day to you", "", 1.0, 4),
        ("...", "", 0.0, 0),
    ],
)
def test_words_are_compared_not_spelling(text: str, heard: str, rate: float, run: int) -> None:
    found = compare(text, heard)
    assert (found.text, found.error_rate, found.longest_error_run) == (heard, pytest.approx(rate), run)


@pytest.mark.parametrize(
    ("text", "heard", "good"),
    [
        ("Come here.", "Come hear.", True),  # one wrong word
        ("Come here.", "Go now.", False),
        ("a b c d e f g h", "a b x d e f y h", True),
        ("a b c d e f g h", "a x c y e z g h", False),
        ("the sun rose over " * 10, "the sun rose over " * 9, False),  # a phrase was lost
    ],
)
def test_a_take_is_unusable_by_wrong_words_or_too_many_in_a_row(text: str, heard: str, good: bool) -> None:
    assert (apply_transcription(TAKE, heard, [text]).fault == "") is good


def test_a_fault_names_the_transcript() -> None:
    made = apply_transcription(TAKE, "Go now.", ["Come here."])
    assert made.fault == 'was recognized as "Go now." (100% of its words wrong, 2 in a row)'
    assert made.transcription and made.transcription.error_rate == 1.0


def test_either_spelling_is_accepted() -> None:
    for heard in ("Ask Nguyen now please", "Ask win now please"):
        assert not apply_transcription(TAKE, heard, ["Ask Nguyen now please", "Ask win now please"]).fault


@pytest.mark.parametrize(
    ("language", "text", "heard", "rate", "run"),
    [
        ("de", "Grüße aus KÖLN, Straße 7!", "grüße aus Köln strasse 7", 0.0, 0),
        ("fr", "L'été, c'est déjà fini.", "l'été c'est deja fini", 1 / 6, 1),
        ("hi", "नमस्ते दुनिया", "नमस्ते, दुनिया।", 0.0, 0),
        ("zh", "今天天气很好。", "今天 天气 不好", 1 / 6, 1),
        ("zh-Hant", "你好,世界", "你好世界!", 0.0, 0),
        ("ja", "今日はいい天気です", "今日は天気です", 2 / 9, 2),
        ("th", "สวัสดีครับ", "สวัสดี ครับ", 0.0, 0),
    ],
)
def test_other_languages_are_compared_by_their_own_letters(
    language: str, text: str, heard: str, rate: float, run: int
) -> None:
    found = compare(text, heard, language)
    assert (found.error_rate, found.longest_error_run) == (pytest.approx(rate), run)


def test_marks_of_a_script_count() -> None:
    assert compare("ผ้า", "ผา", "th").error_rate > 0
    assert compare("हिन्दी", "हन्द", "hi").error_rate == 1.0


@pytest.mark.parametrize(
    ("heard", "good"),
    [("今天天气不错我们去公园吧", True), ("今天天气我们去公园吧", True), ("今天吧", False), ("", False)],
)
def test_a_take_without_spaces_is_judged_by_characters(heard: str, good: bool) -> None:
    fault = apply_transcription(TAKE, heard, ["今天天气很好我们去公园吧"], "zh").fault
    assert (not fault) is good
    assert good or not heard or "of its characters wrong" in fault


def test_a_take_in_which_nothing_is_heard_is_unusable() -> None:
    assert apply_transcription(TAKE, " ...", ["Yes."]).fault == "has no words that were recognized"
    assert not apply_transcription(TAKE, "", ["..."]).fault


class FakeModel:
    """Stands in for faster_whisper.WhisperModel. spoken: the language it was told."""

    loaded: ClassVar[list[FakeModel]] = []
    supported_languages: ClassVar[list[str]] = ["en", "de"]

    def __init__(self, name: str, **options: Any) -> None:
        self.spoken: list[str | None] = []
        if name == "none":
            raise ValueError("Invalid model size 'none'\nand more")
        self.audio: list[np.ndarray] = []
        FakeModel.loaded.append(self)

    def transcribe(self, audio: np.ndarray, **options: Any) -> tuple[Any, object]:
        self.audio.append(audio)
        self.spoken.append(options["language"])
        return iter([SimpleNamespace(text=" Hello"), SimpleNamespace(text=" there. ")]), object()


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("faster_whisper")
    monkeypatch.setattr(FakeModel, "loaded", [])
    module.WhisperModel = FakeModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    monkeypatch.setattr(verification, "find_spec", lambda name: name)


@pytest.mark.usefixtures("whisper")
def test_whisper_is_loaded_once_and_gets_16_khz() -> None:
    recognizer = WhisperRecognizer("base.en")
    for _ in range(2):
        assert recognizer.transcribe(Audio(np.zeros(24000, np.float32), 24000)) == "Hello there."
    (model,) = FakeModel.loaded
    assert [(len(each), each.dtype) for each in model.audio] == [(16000, np.float32)] * 2


@pytest.mark.usefixtures("whisper")
def test_whisper_is_told_the_language_if_it_knows_it() -> None:
    for language in ("de-AT", "tlh", None):
        WhisperRecognizer("base", language).transcribe(Audio(np.zeros(24000, np.float32), 24000))
    assert [model.spoken for model in FakeModel.loaded] == [["de"], [None], [None]]


@pytest.mark.usefixtures("whisper")
def test_a_model_of_english_is_refused_for_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"base\.en: knows only English; for de, name base or small"):
        WhisperRecognizer("base.en", "de")
    monkeypatch.setattr(FakeModel, "supported_languages", ["en"])
    with pytest.raises(UsageError, match="knows only English"):  # a folder does not say so by its name
        WhisperRecognizer("folder", "de").transcribe(Audio(np.zeros(24000, np.float32), 24000))


@pytest.mark.usefixtures("whisper")
def test_a_model_that_cannot_be_loaded_is_a_one_line_error() -> None:
    with pytest.raises(ModelNotFound, match="--verify-model none: cannot be loaded") as caught:
        WhisperRecognizer("none").transcribe(Audio(np.zeros(24000, np.float32), 24000))
    assert "\n" not in str(caught.value)


def test_a_recognizer_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'csm-cli\[verify\]'"):
        WhisperRecognizer("base.en")
