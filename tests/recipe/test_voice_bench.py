"""The voice figures with a fake espeak-ng: a good voice passes, each kind of bad voice fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch

from csm_cli.audio.io import Audio, read_audio
from csm_cli.errors import CsmError
from csm_cli.generation.events import Utterance
from csm_cli.recipe import measure, voice_bench
from csm_cli.recipe.corpus import RATE, VOICES, EspeakSpeech, EspeakVoice
from csm_cli.recipe.measure import CHOICES, PhoneRecognizer, Reference, Samples
from csm_cli.recipe.voice_bench import FIGURES, Figure, Goal, VoiceBench
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

pytestmark = pytest.mark.espeak

SENTENCES = 10


class Tones:
    """A fake espeak-ng: a letter is 50 ms of two formants, a voice is a pitch and a third formant."""

    rate = RATE

    def speak(self, text: str, voice: EspeakVoice) -> EspeakSpeech:
        time = np.arange(RATE // 20) / RATE
        pitch, timbre = 90 * 2 ** (voice.pitch / 40), 3000 + crc32(voice.name.encode()) % 7 * 500
        partials = pitch * np.arange(1, 5000 // pitch)
        waves = np.sin(2 * np.pi * partials[:, None] * time)
        letters = [self._letter(char, partials, timbre) @ waves for char in text.lower()]
        samples = np.concatenate([*letters, np.zeros(RATE // 10)])
        return EspeakSpeech((3000 * samples).astype(np.int16), RATE, ())

    def _letter(self, char: str, partials: np.ndarray, timbre: float) -> np.ndarray:
        formants = (300 + 37 * (ord(char) * 7 % 20), 1100 + 90 * (ord(char) * 5 % 23), timbre)
        return sum(np.exp(-(((partials - formant) / 150) ** 2)) for formant in formants) + 0.02


Voice = Callable[[Conversation, Reference], tuple[Samples, str]]


@dataclass
class Speaker:
    """A fake Synthesizer that speaks like `voice`, with a lossless codec."""

    voice: Voice
    reference: Reference
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    codec = SimpleNamespace(encode=lambda samples: samples, decode=lambda codes: codes)

    @property
    def checkpoint(self) -> SimpleNamespace:
        return SimpleNamespace(name="tones", tokenizer_file=self.folder / "tokenizer.json")

    def speak(
        self, conversations: Sequence[Conversation], flags: GenerationOptions, retry_policy: RetryPolicy | None = None
    ) -> Iterator[Utterance]:
        for each in conversations:
            samples, stop = self.voice(each, self.reference)
            codes = torch.zeros(len(samples) // 1920, 8)
            yield Utterance(each, each.turns[0], codes, Audio(samples, RATE), stop, seconds=len(samples) / RATE / 10)


def faithful(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
    """Like espeak-ng, in the voice of the context."""
    context = [_voice_of(turn, reference) for turn in conversation.context]
    return reference.speech(conversation.turns[0].text, VOICES[(context or [0])[-1]]), "eos"


def _voice_of(turn: Turn, reference: Reference) -> int:
    assert turn.recording
    return reference.closest_voice(read_audio(turn.recording.path, RATE).samples, turn.text)


def ignores_context(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
    """In one voice whatever the context."""
    return reference.speech(conversation.turns[0].text), "eos"


def backwards(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
    """Speaks every sentence backwards."""
    return reference.speech(conversation.turns[0].text[::-1]), "eos"


def endless(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
    return np.tile(reference.speech(conversation.turns[0].text), 2), "cap"


def silent(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
    return np.zeros(0, np.float32), "empty"


@pytest.fixture(scope="module")
def tones() -> Iterator[Reference]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "Espeak", Tones)
        yield Reference()


@pytest.fixture
def bench(tones: Reference, tmp_path: Path) -> Callable[[Voice], VoiceBench]:
    (tmp_path / "tokenizer.json").write_bytes(bytes(500_000))
    return lambda speaks: VoiceBench(lambda slots: Speaker(speaks, tones, tmp_path), tones, SENTENCES)


Bench = Callable[[Voice], VoiceBench]
SPOKEN = ["retrieval_at_1", "minimal_pairs", "clean_stop", "voice_match", "long_text", "rtf"]


@pytest.mark.parametrize("name", [*SPOKEN, "codec_retrieval", "asset_mb"])
def test_voice_as_good_as_espeak_passes(bench: Bench, name: str) -> None:
    figure = bench(faithful).measure(name)
    assert figure.passed, figure


@pytest.mark.parametrize(
    ("speaks", "name", "most"),
    [
        (backwards, "retrieval_at_1", 0.5),
        (backwards, "long_text", 0.5),
        (ignores_context, "voice_match", 0.2),
        (endless, "clean_stop", 0.0),
        (silent, "retrieval_at_1", 0.1),
        (silent, "clean_stop", 0.0),
        (silent, "voice_match", 0.2),
        (silent, "long_text", 0.1),
    ],
)
def test_bad_voice_fails(bench: Bench, speaks: Voice, name: str, most: float) -> None:
    figure = bench(speaks).measure(name)
    assert figure.value is not None and figure.value <= most, figure
    assert not figure.passed


def test_takes_have_fixed_distinct_seeds(bench: Bench) -> None:
    seeds: list[int | None] = []

    def note_seed(conversation: Conversation, reference: Reference) -> tuple[Samples, str]:
        seeds.append(conversation.turns[0].options.seed)
        return ignores_context(conversation, reference)

    for _ in range(2):
        bench(note_seed).measure("clean_stop")
    assert seeds[:SENTENCES] == seeds[SENTENCES:]
    assert len(set(seeds)) == SENTENCES and None not in seeds


def test_figure_that_cannot_be_measured_has_a_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_bench, "can_recognize", lambda: False)
    for figure in map(bench(faithful).measure, ("recognizer_ratio", "codec_recognizer_ratio")):
        assert figure.value is None and figure.passed is None
        assert "pip install" in figure.note
    assert bench(silent).measure("rtf").value is None


def test_recognizer_uses_sentences_of_known_words(tones: Reference) -> None:
    recognizer = PhoneRecognizer(["My number is 9 5.", "The fabulous sneedball.", *tones.texts])
    assert len(recognizer.groups) >= 5
    assert {len(group) for group in recognizer.groups} == {CHOICES}
    assert "The fabulous sneedball." not in recognizer.groups[0]
    assert not [text for group in recognizer.groups for text in group if any(char.isdigit() for char in text)]


def test_recognizer_finds_no_words_in_noise(tones: Reference) -> None:
    recognizer = PhoneRecognizer(tones.texts)
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    hits = recognizer.hits(dict.fromkeys(recognizer.groups[0][:5], noise))
    assert hits == [False] * 5


def test_minimal_pairs_differ_in_one_word(tones: Reference) -> None:
    pairs = tones.minimal_pairs()
    assert len(pairs) == 20
    for first, second in pairs:
        words = list(zip(first.split(), second.split(), strict=True))
        assert sum(one != other for one, other in words) == 1


def test_the_paragraph_has_sixty_words(tones: Reference) -> None:
    assert 60 <= len(" ".join(tones.paragraph()).split()) <= 75


def test_the_default_voice_is_espeaks() -> None:
    assert EspeakVoice("en-us", rate=175, pitch=50, range=50) == measure.DEFAULT


def test_missing_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libespeak-ng.so.1: cannot open shared object file")

    monkeypatch.setattr(measure, "Espeak", missing)
    with pytest.raises(CsmError, match="apt install espeak-ng"):
        Reference()


@pytest.mark.parametrize(("value", "passed"), [(0.95, True), (0.94, False), (None, None)])
def test_goal_includes_its_limit(value: float | None, passed: bool | None) -> None:
    assert Figure("x", value, Goal(0.95), "").passed is passed
    assert Goal(32, at_most=True).met(32) and not Goal(32, at_most=True).met(32.1)


def test_the_command_ends_with_one_flat_json_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voice_bench, "open_voice_bench", lambda *_: bench(faithful))
    monkeypatch.setattr(voice_bench, "can_recognize", lambda: False)
    voice_bench.main(["--only", "asset_mb,recognizer_ratio", "--sentences", "10"])
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "bench": "bundled-voice",
        "model": "tones",
        "sentences": 10,
        "asset_mb": 0.5,
        "recognizer_ratio": None,
        "recognizer_ratio_reason": "pocketsphinx is not installed; pip install 'csm-cli[bench]'",
    }
    assert "not measured" in told.err and "[bench]" in told.err.replace("\n", "")


def test_an_unknown_figure_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        voice_bench.main(["--only", "loudness"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("loudness", *FIGURES))
