"""Figures of a bundled voice compared with espeak-ng: `python -m csm_cli.recipe.voice_bench`.

Intelligibility, voice match, clean stops, size and speed. Needs espeak-ng and a word list (apt install espeak-ng
wamerican); two figures need pocketsphinx (pip install 'csm-cli[bench]').
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
from csm_cli.generation.events import ConversationFailed, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.recipe.corpus import RATE, VOICES
from csm_cli.recipe.measure import (
    NO_POCKETSPHINX,
    Features,
    PhoneRecognizer,
    Reference,
    Samples,
    can_recognize,
    cut_at_sentences,
    nearest,
)
from csm_cli.types import DEFAULT_CHUNK_CHARS, Conversation, GenerationOptions, Recording, RetryPolicy, Turn

_SEED = 1000
SLOTS = 8
_CANDIDATES = 100
_LENGTHS = (0.7, 1.4)
_TIMED = 8


@dataclass(frozen=True, eq=False)
class BenchTake:
    """Speech of one conversation; ended: by end of speech, not the limit; seconds: compute time."""

    samples: Samples
    ended: bool
    seconds: float


def speak_alone(texts: Sequence[str]) -> list[Conversation]:
    """Each text as speaker 0, without context."""
    return [Conversation((_turn(0, text, index),)) for index, text in enumerate(texts)]


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
    """Measures a voice against espeak-ng on the first `sentences` held-out sentences; they are generated once.

    load: loads the checkpoint for so many conversations at a time.
    """

    def __init__(self, load: Callable[[int], Synthesizer], reference: Reference, sentences: int = 200) -> None:
        self._load = load
        self._synth = load(SLOTS)
        self._reference = reference
        self._texts = reference.texts[:sentences]

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
        return speak(self._synth, speak_alone(self._texts))

    @cached_property
    def _round_trips(self) -> list[Samples]:
        """espeak-ng's renderings, encoded and decoded."""
        return [self._round_trip(self._reference.speech(text)) for text in self._texts]

    @cached_property
    def _recognizer(self) -> PhoneRecognizer:
        return PhoneRecognizer(self._reference.texts)

    def retrieval_at_1(self) -> Measured:
        """Share of takes whose nearest of 100 renderings is of the same text."""
        return _share(self._retrieved([take.samples for take in self._takes]))

    def minimal_pairs(self) -> Measured:
        """Share of takes nearer to their own text than to one with another noun, relative to the corpus's voices."""
        reference = self._reference
        pairs = reference.minimal_pairs()
        takes = speak(self._synth, speak_alone([text for pair in pairs for text in pair]))
        mine, _ = _share(self._discriminated(pairs, [take.samples for take in takes]))
        spoken = [[reference.speech(text, voice) for pair in pairs for text in pair] for voice in VOICES]
        theirs, _ = _share([hit for samples in spoken for hit in self._discriminated(pairs, samples)])
        return _ratio(mine, theirs, "the corpus's voices")

    def recognizer_ratio(self) -> Measured:
        """Share recognized by pocketsphinx among 20 sentences, relative to espeak-ng."""
        return self._recognized([take.samples for take in self._takes])

    def clean_stop(self) -> Measured:
        """Share of takes that end by themselves at 0.7 to 1.4 times espeak-ng's length."""
        ratios = [
            len(take.samples) / len(self._reference.speech(text))
            for take, text in zip(self._takes, self._texts, strict=True)
        ]
        low, high = _LENGTHS
        clean = [take.ended and low <= ratio <= high for take, ratio in zip(self._takes, ratios, strict=True)]
        value, note = _share(clean)
        ended = sum(take.ended for take in self._takes)
        return value, f"{note}; {ended} ended, lengths {min(ratios):.2f} to {max(ratios):.2f} of espeak-ng's"

    def voice_match(self) -> Measured:
        """Share of takes, with one turn of context, whose nearest voice is the context's."""
        with tempfile.TemporaryDirectory() as folder:
            takes = speak(self._synth, [self._in_voice(Path(folder), index) for index in range(len(self._texts))])
        value, note = _share(self._matched([take.samples for take in takes]))
        spoken = [self._reference.speech(text, VOICES[index % len(VOICES)]) for index, text in enumerate(self._texts)]
        codec, _ = _share(self._matched([self._round_trip(samples) for samples in spoken]))
        return value, f"{note}; the codec's round trip of each voice: {codec:.2f}"

    def codec_retrieval(self) -> Measured:
        """`retrieval_at_1` of renderings after the codec's round trip."""
        return _share(self._retrieved(self._round_trips))

    def codec_recognizer_ratio(self) -> Measured:
        """`recognizer_ratio` of renderings after the codec's round trip."""
        return self._recognized(self._round_trips)

    def long_text(self) -> Measured:
        """Share of a paragraph's sentences found in order, generated as one turn with the commands' defaults."""
        sentences = self._reference.paragraph()
        text = " ".join(sentences)
        take = speak(
            self._synth, speak_alone([text]), RetryPolicy(trim=True, max_retries=2, chunk_chars=DEFAULT_CHUNK_CHARS)
        )[0]
        parts = cut_at_sentences(take.samples, [self._reference.features(sentence) for sentence in sentences])
        candidates = self._candidates(0)
        value, note = _share([nearest(part, candidates) == index for index, part in enumerate(parts)])
        stop = "ended" if take.ended else "cut off"
        return value, f"{note} sentences of {len(text.split())} words; {stop} after {len(take.samples) / RATE:.1f} s"

    def asset_mb(self) -> Measured:
        """Size of the checkpoint's files."""
        folder = self._synth.checkpoint.tokenizer_file.parent
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6, f"{len(files)} files"

    def rtf(self) -> Measured:
        """Compute time per audio time, one sentence at a time, without the first."""
        synth = self._load(1)
        takes = speak(synth, speak_alone(self._texts[: _TIMED + 1]))[1:]
        audio = sum(len(take.samples) for take in takes) / RATE
        seconds = sum(take.seconds for take in takes)
        return (seconds / audio if audio else None), f"{synth.device}, {torch.get_num_threads()} threads"

    def _round_trip(self, samples: Samples) -> Samples:
        codec = self._synth.codec
        codes = codec.encode(torch.from_numpy(samples).to(self._synth.device))
        decoded: Samples = codec.decode(codes).cpu().numpy()
        return decoded

    def _candidates(self, index: int) -> list[Features]:
        """Features of the 100 renderings that include sentence `index`."""
        first = index // _CANDIDATES * _CANDIDATES
        return [self._reference.features(text) for text in self._reference.texts[first : first + _CANDIDATES]]

    def _retrieved(self, samples: Sequence[Samples]) -> list[bool]:
        return [nearest(each, self._candidates(index)) == index % _CANDIDATES for index, each in enumerate(samples)]

    def _discriminated(self, pairs: Sequence[tuple[str, str]], samples: Sequence[Samples]) -> list[bool]:
        """samples: both sentences of the first pair, then of the second, and so on."""
        renderings = [[self._reference.features(text) for text in pair] for pair in pairs]
        return [nearest(each, renderings[index // 2]) == index % 2 for index, each in enumerate(samples)]

    def _recognized(self, samples: Sequence[Samples]) -> Measured:
        if not can_recognize():
            return None, NO_POCKETSPHINX
        mine, _ = _share(self._recognizer.hits(dict(zip(self._texts, samples, strict=True))))
        theirs, _ = _share(self._recognizer.hits({text: self._reference.speech(text) for text in self._texts}))
        return _ratio(mine, theirs, "espeak-ng")

    def _in_voice(self, folder: Path, index: int) -> Conversation:
        """Sentence `index`, with the next sentence by espeak-ng in voice `index` (modulo their number) as context."""
        context_text = self._reference.texts[(index + 1) % len(self._reference.texts)]
        path = folder / f"{index}.wav"
        write_audio(path, Audio(self._reference.speech(context_text, VOICES[index % len(VOICES)]), RATE))
        return speak_in_context(path, context_text, self._texts[index], index)

    def _matched(self, samples: Sequence[Samples]) -> list[bool]:
        texts = self._texts
        closest = [self._reference.closest_voice(each, text) for each, text in zip(samples, texts, strict=True)]
        return [voice == index % len(VOICES) for index, voice in enumerate(closest)]


def _share(hits: Sequence[bool]) -> tuple[float, str]:
    return sum(hits) / len(hits), f"{sum(hits)} of {len(hits)}"


def _ratio(mine: float, theirs: float, reference: str) -> Measured:
    return (mine / theirs if theirs else None), f"{mine:.3f} over {theirs:.3f} of {reference}"


FIGURES: dict[str, tuple[Goal, Callable[[VoiceBench], Measured]]] = {
    "retrieval_at_1": (Goal(0.95), VoiceBench.retrieval_at_1),
    "minimal_pairs": (Goal(0.85), VoiceBench.minimal_pairs),
    "recognizer_ratio": (Goal(0.9), VoiceBench.recognizer_ratio),
    "clean_stop": (Goal(0.98), VoiceBench.clean_stop),
    "voice_match": (Goal(0.95), VoiceBench.voice_match),
    "codec_retrieval": (Goal(1.0), VoiceBench.codec_retrieval),
    "codec_recognizer_ratio": (Goal(0.95), VoiceBench.codec_recognizer_ratio),
    "long_text": (Goal(1.0), VoiceBench.long_text),
    "asset_mb": (Goal(32, at_most=True), VoiceBench.asset_mb),
    "rtf": (Goal(0.25, at_most=True), VoiceBench.rtf),
}
"""Targets and measurements by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line per figure on standard error, and all of them as one JSON line."""
    parser = argparse.ArgumentParser(prog="csm_cli.recipe.voice_bench", description=__doc__)
    parser.add_argument("--model", help="Hugging Face id or path; the bundled voice if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sentences", type=int, default=200, help="fewer for a quick look")
    parser.add_argument("--only", default=",".join(FIGURES), metavar="NAME,...", help="some of the figures")
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}; --only takes {', '.join(FIGURES)}")
    bench = open_voice_bench(options.model, options.device, options.sentences)
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


def open_voice_bench(model: str | None, device_name: str, sentences: int) -> VoiceBench:
    """Raises CsmError if espeak-ng or the word list is missing, or the model cannot be opened."""
    reference, device = Reference(), pick_device(device_name)
    load = partial(Synthesizer, open_checkpoint(model), device, pick_dtype("auto", device))
    return VoiceBench(load, reference, sentences)


if __name__ == "__main__":
    main()
