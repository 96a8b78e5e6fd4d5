"""The voice figures with a fake teacher and fake judges: a good voice passes, each kind of bad voice fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from csm_cli.recipe.corpus import RATE, EspeakSpeech, EspeakVoice
from csm_cli.recipe.judge import JudgedRecording, Judgement
from csm_cli.recipe.measure import Reference, Samples, nearest, voice_print
from csm_cli.recipe.reference_voices import EspeakVoices, TeacherVoices, reference_voices, write_voices
from csm_cli.recipe.voice_bench import FIGURES, Figure, Goal, VoiceBench
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy

pytestmark = pytest.mark.espeak

TEXTS = ["Did the old dog see it?", "My name is on the box.", "Is it a new river?", "We sang.", "Bring the green lamp."]


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


class ToneVoices(EspeakVoices):
    """Three of the fake espeak-ng's voices."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self.names = self.names[:3]

    def speech(self, text: str, voice: int = 0) -> Samples:
        return self.render([(text, voice)])[0]


class ToneJudges:
    """Understands a recording that is nearer to its text than to its text backwards; knows voices by their prints."""

    def __init__(self, voices: ToneVoices) -> None:
        self._voices = voices

    def judge(
        self, recordings: Sequence[tuple[Path, str]], references: Mapping[str, Sequence[Path]], recognizer: str = "base"
    ) -> Judgement:
        clips = [(read_audio(path, RATE).samples, text) for path, text in recordings]
        understood = [self._understands(samples, text) for samples, text in clips]
        prints = {name: np.mean([self._print(path) for path in paths], axis=0) for name, paths in references.items()}
        judged = [
            JudgedRecording(
                mos=4.0 if good else 1.0,
                pitch_spread=2.5,
                pitch_rise=3.0 if good and text.endswith("?") else -3.0,
                similarity={name: 1 / (1 + self._apart(samples, print)) for name, print in prints.items()},
            )
            for (samples, text), good in zip(clips, understood, strict=True)
        ]
        wer = 1 - sum(understood) / len(understood)
        return Judgement(wer, wer, "", tuple(judged))

    def _understands(self, samples: Samples, text: str) -> bool:
        choices = [measure.acoustic_features(self._voices.speech(each)) for each in (text, text[::-1])]
        return bool(samples.any()) and nearest(samples, choices) == 0

    def _print(self, path: Path) -> np.ndarray:
        return voice_print(read_audio(path, RATE).samples)

    def _apart(self, samples: Samples, print: np.ndarray) -> float:
        return float(np.abs(voice_print(samples) - print)[-1]) if samples.any() else 99.0


Voice = Callable[[Conversation, ToneVoices], tuple[Samples, str]]


@dataclass
class Speaker:
    """A fake Synthesizer that speaks like `voice`, with a lossless codec."""

    voice: Voice
    voices: ToneVoices
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
            for turn in each.turns:
                samples, stop = self.voice(Conversation((turn,), each.context, id=each.id), self.voices)
                codes = torch.zeros(len(samples) // 1920, 8)
                yield Utterance(each, turn, codes, Audio(samples, RATE), stop, seconds=len(samples) / RATE / 10)


def faithful(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
    """Like the teacher, in the voice of the context, else of the speaker's number."""
    turn = conversation.turns[0]
    voice = turn.speaker
    for context in conversation.context:
        assert context.recording
        transcript = voice_print(read_audio(context.recording.path, RATE).samples)[-1]
        pitches = [voice_print(voices.speech(context.text, voice))[-1] for voice in range(3)]
        voice = int(np.abs(np.array(pitches) - transcript).argmin())
    return voices.speech(turn.text, voice), "eos"


def ignores_context(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
    """In one voice whatever the context and the speaker."""
    return voices.speech(conversation.turns[0].text), "eos"


def backwards(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
    """Speaks every sentence backwards."""
    return voices.speech(conversation.turns[0].text[::-1]), "eos"


def endless(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
    return np.tile(voices.speech(conversation.turns[0].text), 2), "cap"


def silent(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
    return np.zeros(0, np.float32), "empty"


@pytest.fixture(scope="module")
def tones() -> Iterator[ToneVoices]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "Espeak", Tones)
        yield ToneVoices(Reference())


@pytest.fixture
def bench(tones: ToneVoices, tmp_path: Path) -> Callable[[Voice], VoiceBench]:
    (tmp_path / "tokenizer.json").write_bytes(bytes(500_000))
    judges = ToneJudges(tones)
    return lambda speaks: VoiceBench(lambda slots: Speaker(speaks, tones, tmp_path), tones, judges, TEXTS)


Bench = Callable[[Voice], VoiceBench]


def test_voice_as_good_as_its_teacher_passes(bench: Bench) -> None:
    judged = bench(faithful)
    figures = [judged.measure(name) for name in FIGURES]
    assert [figure.name for figure in figures if not figure.passed] == []


@pytest.mark.parametrize(
    ("speaks", "failing"),
    [
        (backwards, {"wer", "mos", "question_rise", "dialogue_wer", "long_text_wer"}),
        (ignores_context, {"voice_match"}),
        (endless, {"clean_stop"}),
        (silent, {"wer", "mos", "question_rise", "clean_stop", "voice_match", "similarity", "dialogue_wer"}),
    ],
)
def test_bad_voice_fails(bench: Bench, speaks: Voice, failing: set[str]) -> None:
    judged = bench(speaks)
    assert {name for name in failing if judged.measure(name).passed} == set()


def test_takes_have_fixed_distinct_seeds(bench: Bench) -> None:
    seeds: list[int | None] = []

    def note_seed(conversation: Conversation, voices: ToneVoices) -> tuple[Samples, str]:
        seeds.append(conversation.turns[0].options.seed)
        return ignores_context(conversation, voices)

    for _ in range(2):
        bench(note_seed).measure("clean_stop")
    assert seeds[: len(TEXTS)] == seeds[len(TEXTS) :]
    assert len(set(seeds)) == len(TEXTS) and None not in seeds


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


def test_a_natural_voice_names_its_teachers_voices(tmp_path: Path) -> None:
    write_voices(tmp_path, ["af_heart", "am_michael"])
    with pytest.raises(CsmError, match=r"csm_cli\.recipe\.teacher"):
        reference_voices(tmp_path, tmp_path / "kokoro")
    (tmp_path / "kokoro").mkdir()
    (tmp_path / "kokoro" / "kokoro-f32.onnx").touch()
    voices = reference_voices(tmp_path, tmp_path / "kokoro")
    assert isinstance(voices, TeacherVoices) and voices.names == ("af_heart", "am_michael")


def test_the_command_ends_with_one_flat_json_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voice_bench, "open_voice_bench", lambda _: bench(silent))
    voice_bench.main(["--only", "asset_mb,rtf", "--sentences", "5"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "bench": "bundled-voice",
        "model": "tones",
        "sentences": 5,
        "asset_mb": 0.5,
        "rtf": None,
        "rtf_reason": f"cpu, {torch.get_num_threads()} threads",
    }
    assert "not measured" in captured.err


def test_missing_judges_are_told(tmp_path: Path) -> None:
    with pytest.raises(CsmError, match=r"csm_cli\.recipe\.judge"):
        voice_bench.main(["--judges", str(tmp_path)])


def test_an_unknown_figure_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        voice_bench.main(["--only", "loudness"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("loudness", *FIGURES))
