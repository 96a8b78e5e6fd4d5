"""Figures of a bundled voice by independent judges: `python -m csm_cli.recipe.voice_bench`.

Words, naturalness, pitch, voice, stops, size and speed, beside its teacher's. Needs `make judges` and a word list (apt
install wamerican); a natural voice needs its teacher too (`make teacher`), another one espeak-ng.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from csm_cli.audio.io import Audio, write_audio
from csm_cli.checkpoint import open_checkpoint
from csm_cli.cli.console import emit_json, log_line
from csm_cli.device import pick_device, pick_dtype
from csm_cli.errors import CsmError
from csm_cli.generation.events import ConversationFailed, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.recipe.corpus import RATE
from csm_cli.recipe.judge import Judgement, Judges, question_rise
from csm_cli.recipe.measure import Samples, at_least_one_frame
from csm_cli.recipe.reference_voices import ReferenceVoices, reference_voices
from csm_cli.recipe.sentences import held_out_sentences
from csm_cli.types import DEFAULT_CHUNK_CHARS, Conversation, GenerationOptions, Recording, RetryPolicy, Turn

_SEED = 1000
SLOTS = 8
_LENGTHS = (0.7, 1.4)
_TIMED = 8
_DIALOGUE_TURNS = 30
_PARAGRAPH_WORDS = 60
_VOICE_CLIPS = 8


@dataclass(frozen=True, eq=False)
class BenchTake:
    """Speech of one conversation; ended: by end of speech, not the limit; seconds: compute time."""

    samples: Samples
    ended: bool
    seconds: float


def speak_in_context(context: Path, context_text: str, text: str, index: int) -> Conversation:
    """`text` by a speaker with a recording of `context_text` as context."""
    speaker = index % 3
    return Conversation((_turn(speaker, text, index),), (Turn(speaker, context_text, recording=Recording(context)),))


def speak(
    synth: Synthesizer, conversations: Sequence[Conversation], retry_policy: RetryPolicy | None = None
) -> list[BenchTake]:
    """Generates each conversation; without a `retry_policy`, as the model makes it.

    Raises:
        CsmError: a conversation cannot be generated.
    """
    numbered = [replace(each, id=str(number)) for number, each in enumerate(conversations)]
    utterances: dict[str, list[Utterance]] = {each.id: [] for each in numbered}
    for event in synth.speak(numbered, GenerationOptions(), retry_policy):
        if isinstance(event, ConversationFailed):
            raise event.error
        if isinstance(event, Utterance):
            utterances[event.conversation.id].append(event)
    return [_take(utterances[each.id]) for each in numbered]


def _turn(speaker: int, text: str, index: int) -> Turn:
    return Turn(speaker, text, options=GenerationOptions(seed=_SEED + index))


def _take(utterances: Sequence[Utterance]) -> BenchTake:
    return BenchTake(
        samples=np.concatenate([each.audio.samples for each in utterances]),
        ended=all(each.stop == "eos" for each in utterances),
        seconds=sum(each.seconds for each in utterances),
    )


@dataclass(frozen=True)
class Goal:
    """Target of a figure."""

    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """A measured value, None where it could not be measured, and how it was measured."""

    name: str
    value: float | None
    goal: Goal
    note: str

    @property
    def passed(self) -> bool | None:
        return None if self.value is None else self.goal.met(self.value)


Measured = tuple[float | None, str]


class VoiceBench:
    """Measures a voice on held-out sentences, beside its teacher; everything is generated and judged once.

    load: loads the checkpoint for so many conversations at a time. Sentences are spoken by speakers 0 and 1 in turn.
    """

    def __init__(
        self, load: Callable[[int], Synthesizer], voices: ReferenceVoices, judges: Judges, texts: Sequence[str]
    ) -> None:
        self._load = load
        self._synth = load(SLOTS)
        self._voices = voices
        self._judges = judges
        self._texts = texts
        self._speakers = [index % min(2, len(voices.names)) for index in range(len(texts))]

    @property
    def model(self) -> str:
        return self._synth.checkpoint.name

    def measure(self, name: str) -> Figure:
        """One of `FIGURES`."""
        goal, measured = FIGURES[name]
        value, note = measured(self)
        return Figure(name, value, goal, note)

    @cached_property
    def _takes(self) -> list[BenchTake]:
        pairs = zip(self._speakers, self._texts, strict=True)
        turns = [_turn(speaker, text, index) for index, (speaker, text) in enumerate(pairs)]
        return speak(self._synth, [Conversation((turn,)) for turn in turns])

    @cached_property
    def _rendered(self) -> list[Samples]:
        """The same sentences by the teacher."""
        return self._voices.render(list(zip(self._texts, self._speakers, strict=True)))

    @cached_property
    def _judged(self) -> Judgement:
        return self._judge([take.samples for take in self._takes], self._texts, similarity=True)

    @cached_property
    def _judged_teacher(self) -> Judgement:
        return self._judge(self._rendered, self._texts, similarity=True)

    def wer(self) -> Measured:
        """Word error rate of Whisper base."""
        return self._judged.wer, f"the teacher's: {self._judged_teacher.wer:.3f}"

    def codec_wer(self) -> Measured:
        """Word error rate of the teacher's speech after the codec's round trip."""
        judged = self._judge([self._round_trip(samples) for samples in self._rendered], self._texts)
        return judged.wer, f"MOS {judged.mos:.2f}"

    def mos(self) -> Measured:
        """Mean DistillMOS, 1 to 5."""
        return self._judged.mos, f"the teacher's: {self._judged_teacher.mos:.2f}"

    def pitch_spread(self) -> Measured:
        """Mean deviation of pitch within a sentence, in semitones."""
        reference = self._judged_teacher.pitch_spread
        return self._judged.pitch_spread, f"the teacher's: {'-' if reference is None else f'{reference:.2f}'}"

    def question_rise(self) -> Measured:
        """Share of questions whose pitch rises at the end, of those for which the teacher's does."""
        places = [index for index, text in enumerate(self._texts) if text.endswith("?")]
        own, teacher = ([each.recordings[place] for place in places] for each in (self._judged, self._judged_teacher))
        rising, of = question_rise(own, teacher)
        return (rising / of if of else None), f"{rising} of {of} that the teacher raises, of {len(places)} questions"

    def similarity(self) -> Measured:
        """Mean cosine of speaker embeddings with the teacher's voice of the same number."""
        names = [self._voices.names[speaker] for speaker in self._speakers]
        return self._judged.similarity(names), f"the teacher's own: {self._judged_teacher.similarity(names):.2f}"

    def clean_stop(self) -> Measured:
        """Share of takes that end by themselves at 0.7 to 1.4 times the teacher's length."""
        pairs = zip(self._takes, self._rendered, strict=True)
        ratios = [len(take.samples) / len(rendered) for take, rendered in pairs]
        low, high = _LENGTHS
        clean = sum(take.ended and low <= ratio <= high for take, ratio in zip(self._takes, ratios, strict=True))
        ended = sum(take.ended for take in self._takes)
        note = f"{ended} of {len(ratios)} ended, lengths {min(ratios):.2f} to {max(ratios):.2f} of the teacher's"
        return clean / len(ratios), note

    def voice_match(self) -> Measured:
        """Share of takes, with one turn of context, whose closest voice by speaker embedding is the context's."""
        count = len(self._texts)
        voices = [index % len(self._voices.names) for index in range(count)]
        spoken = [self._texts[(index + 1) % count] for index in range(count)]
        contexts = self._voices.render(list(zip(spoken, voices, strict=True)))
        with tempfile.TemporaryDirectory() as folder:
            conversations = []
            for index, samples in enumerate(contexts):
                path = Path(folder) / f"{index}.wav"
                write_audio(path, Audio(samples, RATE))
                conversations.append(speak_in_context(path, spoken[index], self._texts[index], index))
            takes = speak(self._synth, conversations)
        judged = self._judge([take.samples for take in takes], self._texts, similarity=True)
        return judged.voice_match([self._voices.names[voice] for voice in voices]), f"of {len(set(voices))} voices"

    def dialogue_wer(self) -> Measured:
        """Word error rate of one dialogue of 30 turns between speakers 0 and 1."""
        texts = [self._texts[index % len(self._texts)] for index in range(_DIALOGUE_TURNS)]
        turns = tuple(_turn(index % 2, text, index) for index, text in enumerate(texts))
        (take,) = speak(self._synth, [Conversation(turns)])
        return self._judge([take.samples], [" ".join(texts)]).wer, f"{len(take.samples) / RATE:.0f} s"

    def long_text_wer(self) -> Measured:
        """Word error rate of a paragraph of 60 words and more, generated as one turn with the commands' defaults."""
        totals = np.cumsum([len(text.split()) for text in self._texts])
        text = " ".join(self._texts[: int(np.searchsorted(totals, _PARAGRAPH_WORDS)) + 1])
        policy = RetryPolicy(trim=True, max_retries=2, chunk_chars=DEFAULT_CHUNK_CHARS)
        (take,) = speak(self._synth, [Conversation((_turn(0, text, 0),))], policy)
        stop = "ended" if take.ended else "cut off"
        return self._judge([take.samples], [text]).wer, f"{len(text.split())} words; {stop}"

    def asset_mb(self) -> Measured:
        """Size of the checkpoint's files."""
        folder = self._synth.checkpoint.tokenizer_file.parent
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6, f"{len(files)} files"

    def rtf(self) -> Measured:
        """Compute time per audio time, one sentence at a time, without the first."""
        synth = self._load(1)
        turns = [_turn(0, text, index) for index, text in enumerate(self._texts[: _TIMED + 1])]
        takes = speak(synth, [Conversation((turn,)) for turn in turns])[1:]
        audio = sum(len(take.samples) for take in takes) / RATE
        seconds = sum(take.seconds for take in takes)
        return (seconds / audio if audio else None), f"{synth.device}, {torch.get_num_threads()} threads"

    def _judge(self, takes: Sequence[Samples], texts: Sequence[str], similarity: bool = False) -> Judgement:
        """Judges speech at 24 kHz; similarity: with each of the voices, by sentences of the teacher's."""
        with tempfile.TemporaryDirectory() as folder:
            paths = _write_clips(Path(folder), takes)
            references: dict[str, list[Path]] = {}
            if similarity:
                for number, (name, clips) in enumerate(self._voice_clips.items()):
                    (Path(folder) / f"voice{number}").mkdir()
                    references[name] = _write_clips(Path(folder) / f"voice{number}", clips)
            return self._judges.judge(list(zip(paths, texts, strict=True)), references)

    @cached_property
    def _voice_clips(self) -> dict[str, list[Samples]]:
        """Some sentences in each voice."""
        texts = self._texts[-_VOICE_CLIPS:]
        wanted = [(text, voice) for voice in range(len(self._voices.names)) for text in texts]
        rendered = iter(self._voices.render(wanted))
        return {name: [next(rendered) for _ in texts] for name in self._voices.names}

    def _round_trip(self, samples: Samples) -> Samples:
        codec = self._synth.codec
        codes = codec.encode(torch.from_numpy(samples).to(self._synth.device))
        decoded: Samples = codec.decode(codes).cpu().numpy()
        return decoded


def _write_clips(folder: Path, clips: Sequence[Samples]) -> list[Path]:
    """WAV files; an empty take becomes one frame of silence."""
    paths = [folder / f"{index:04}.wav" for index in range(len(clips))]
    for path, samples in zip(paths, clips, strict=True):
        write_audio(path, Audio(at_least_one_frame(samples), RATE))
    return paths


FIGURES: dict[str, tuple[Goal, Callable[[VoiceBench], Measured]]] = {
    "wer": (Goal(0.10, at_most=True), VoiceBench.wer),
    "codec_wer": (Goal(0.05, at_most=True), VoiceBench.codec_wer),
    "mos": (Goal(2.5), VoiceBench.mos),
    "pitch_spread": (Goal(1.8), VoiceBench.pitch_spread),
    "question_rise": (Goal(0.7), VoiceBench.question_rise),
    "clean_stop": (Goal(0.98), VoiceBench.clean_stop),
    "voice_match": (Goal(0.95), VoiceBench.voice_match),
    "similarity": (Goal(0.8), VoiceBench.similarity),
    "dialogue_wer": (Goal(0.12, at_most=True), VoiceBench.dialogue_wer),
    "long_text_wer": (Goal(0.10, at_most=True), VoiceBench.long_text_wer),
    "asset_mb": (Goal(64, at_most=True), VoiceBench.asset_mb),
    "rtf": (Goal(0.25, at_most=True), VoiceBench.rtf),
}
"""Targets and measurements by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per figure on standard error, and all of them as one JSON line."""
    parser = argparse.ArgumentParser(prog="csm_cli.recipe.voice_bench", description=__doc__)
    parser.add_argument("--model", help="Hugging Face id or path; the bundled voice if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--judges", type=Path, default=Path("runs/judge"), help="where the judges are set up")
    parser.add_argument("--teacher", type=Path, default=Path("runs/kokoro"), help="where the teacher is set up")
    parser.add_argument("--sentences", type=int, default=200, help="fewer for a quick look")
    parser.add_argument("--only", default=",".join(FIGURES), metavar="NAME,...", help="some of the figures")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}; --only takes {', '.join(FIGURES)}")
    bench = open_voice_bench(options)
    record: dict[str, float | str | None] = {"bench": "bundled-voice", "model": bench.model}
    record["sentences"] = options.sentences
    for name in names:
        figure = bench.measure(name)
        verdict = {True: "pass", False: "miss", None: "not measured"}[figure.passed]
        value = "-" if figure.value is None else f"{figure.value:.3f}"
        log_line(f"{name:24}  {value:>8}  {figure.goal!s:>8}  {verdict}  {figure.note}")
        record[name] = None if figure.value is None else round(figure.value, 4)
        if figure.value is None:
            record[f"{name}_reason"] = figure.note
    emit_json(record)


def open_voice_bench(options: argparse.Namespace) -> VoiceBench:
    """The bench that the command's options describe.

    Raises:
        CsmError: the judges, the teacher or the word list is missing, or the model cannot be opened.
    """
    judges = Judges(options.judges)
    if not judges.are_set_up:
        raise CsmError(f"the judges are not set up; run python -m csm_cli.recipe.judge {options.judges}")
    checkpoint, device = open_checkpoint(options.model), pick_device(options.device)
    load = partial(Synthesizer, checkpoint, device, pick_dtype("auto", device))
    voices = reference_voices(checkpoint.tokenizer_file.parent, options.teacher)
    return VoiceBench(load, voices, judges, held_out_sentences()[: options.sentences])


if __name__ == "__main__":
    main()
