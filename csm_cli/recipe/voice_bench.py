"""The figures of `csm bench voice`: does a voice say the right words, in the right voice, and stop?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from csm_cli.audio.io import Audio, write_audio
from csm_cli.generation.chunking import DEFAULT_CHUNK_CHARS
from csm_cli.recipe.corpus import RATE, VOICES
from csm_cli.recipe.recognizer import MISSING, PhoneRecognizer, can_recognize
from csm_cli.recipe.reference import Reference
from csm_cli.recipe.sounds import Features, Samples, cut_at_sentences, nearest
from csm_cli.recipe.takes import BenchTake, speak, speak_alone, speak_in_context
from csm_cli.types import RetryPolicy

if TYPE_CHECKING:
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.types import Conversation

SLOTS = 8
_CANDIDATES = 100
_LENGTHS = (0.7, 1.4)
_TIMED = 8


@dataclass(frozen=True)
class Goal:
    """What a figure should be."""

    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True)
class Figure:
    """A measured value, None where it could not be measured, and what stands behind it."""

    name: str
    value: float | None
    goal: Goal
    note: str

    @property
    def passed(self) -> bool | None:
        return None if self.value is None else self.goal.met(self.value)


Measured = tuple[float | None, str]


class VoiceBench:
    """Measures a voice against espeak-ng, over the first `sentences` held-out ones; takes are made once.

    load: the checkpoint made ready to speak so many conversations at a time.
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
    def _trips(self) -> list[Samples]:
        """espeak-ng's renderings through the codec."""
        return [self._trip(self._reference.speech(text)) for text in self._texts]

    @cached_property
    def _recognizer(self) -> PhoneRecognizer:
        return PhoneRecognizer(self._reference.texts)

    def retrieval_at_1(self) -> Measured:
        """Of 100 renderings, a take's nearest is its own text's."""
        return _share(self._retrieved([take.samples for take in self._takes]))

    def minimal_pairs(self) -> Measured:
        """Of two renderings that differ in one word, a take's nearer is its own; over the corpus's voices."""
        reference = self._reference
        pairs = reference.minimal_pairs()
        takes = speak(self._synth, speak_alone([text for pair in pairs for text in pair]))
        mine, _ = _share(self._told_apart(pairs, [take.samples for take in takes]))
        spoken = [[reference.speech(text, voice) for pair in pairs for text in pair] for voice in VOICES]
        theirs, _ = _share([hit for samples in spoken for hit in self._told_apart(pairs, samples)])
        return _ratio(mine, theirs, "the corpus's voices")

    def recognizer_ratio(self) -> Measured:
        """pocketsphinx's choice among 20 sentences is right; over espeak-ng."""
        return self._recognized([take.samples for take in self._takes])

    def clean_stop(self) -> Measured:
        """A take ends by itself, at a length near espeak-ng's."""
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
        """With one context turn, a take's nearest voice is the context's."""
        with tempfile.TemporaryDirectory() as folder:
            takes = speak(self._synth, [self._in_voice(Path(folder), index) for index in range(len(self._texts))])
        value, note = _share(self._matched([take.samples for take in takes]))
        spoken = [self._reference.speech(text, VOICES[index % len(VOICES)]) for index, text in enumerate(self._texts)]
        codec, _ = _share(self._matched([self._trip(samples) for samples in spoken]))
        return value, f"{note}; the codec's round trip of each voice: {codec:.2f}"

    def codec_retrieval(self) -> Measured:
        """The codec's round trip: of 100 renderings, the nearest is its own text's."""
        return _share(self._retrieved(self._trips))

    def codec_recognizer_ratio(self) -> Measured:
        """The codec's round trip: pocketsphinx's choice is right; over espeak-ng."""
        return self._recognized(self._trips)

    def long_text(self) -> Measured:
        """Sentences found, in order, in a paragraph spoken as one turn, as every command speaks it by default."""
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
        """Megabytes of all the checkpoint's files."""
        folder = self._synth.checkpoint.tokenizer_file.parent
        files = [path for path in folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6, f"{len(files)} files"

    def rtf(self) -> Measured:
        """Compute time per time of audio, one sentence at a time, the first left out."""
        synth = self._load(1)
        takes = speak(synth, speak_alone(self._texts[: _TIMED + 1]))[1:]
        audio = sum(len(take.samples) for take in takes) / RATE
        seconds = sum(take.seconds for take in takes)
        return (seconds / audio if audio else None), f"{synth.device}, {torch.get_num_threads()} threads"

    def _trip(self, samples: Samples) -> Samples:
        codec = self._synth.codec
        codes = codec.encode(torch.from_numpy(samples).to(self._synth.device))
        decoded: Samples = codec.decode(codes).cpu().numpy()
        return decoded

    def _candidates(self, index: int) -> list[Features]:
        """Features of the 100 renderings among which sentence `index` is."""
        first = index // _CANDIDATES * _CANDIDATES
        return [self._reference.features(text) for text in self._reference.texts[first : first + _CANDIDATES]]

    def _retrieved(self, samples: Sequence[Samples]) -> list[bool]:
        return [nearest(each, self._candidates(index)) == index % _CANDIDATES for index, each in enumerate(samples)]

    def _told_apart(self, pairs: Sequence[tuple[str, str]], samples: Sequence[Samples]) -> list[bool]:
        """samples: of the first pair's first and second, and so on."""
        renderings = [[self._reference.features(text) for text in pair] for pair in pairs]
        return [nearest(each, renderings[index // 2]) == index % 2 for index, each in enumerate(samples)]

    def _recognized(self, samples: Sequence[Samples]) -> Measured:
        if not can_recognize():
            return None, MISSING
        mine, _ = _share(self._recognizer.hits(dict(zip(self._texts, samples, strict=True))))
        theirs, _ = _share(self._recognizer.hits({text: self._reference.speech(text) for text in self._texts}))
        return _ratio(mine, theirs, "espeak-ng")

    def _in_voice(self, folder: Path, index: int) -> Conversation:
        """Sentence `index` after the next one, which espeak-ng has said in voice `index` (modulo their number)."""
        said = self._reference.texts[(index + 1) % len(self._reference.texts)]
        path = folder / f"{index}.wav"
        write_audio(path, Audio(self._reference.speech(said, VOICES[index % len(VOICES)]), RATE))
        return speak_in_context(path, said, self._texts[index], index)

    def _matched(self, samples: Sequence[Samples]) -> list[bool]:
        texts = self._texts
        closest = [self._reference.closest_voice(each, text) for each, text in zip(samples, texts, strict=True)]
        return [voice == index % len(VOICES) for index, voice in enumerate(closest)]


def _share(hits: Sequence[bool]) -> tuple[float, str]:
    return sum(hits) / len(hits), f"{sum(hits)} of {len(hits)}"


def _ratio(mine: float, theirs: float, whose: str) -> Measured:
    return (mine / theirs if theirs else None), f"{mine:.3f} over {theirs:.3f} of {whose}"


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
"""What `csm bench voice` measures, in the order it is shown."""
