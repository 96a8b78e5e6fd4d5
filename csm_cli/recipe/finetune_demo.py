"""What fine-tuning is worth: a voice the model has never heard, learned from minutes of speech."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.encode import codec_identity
from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.models.mimi import Codec
from csm_cli.recipe.corpus import RATE, VOICES
from csm_cli.recipe.espeak import EspeakVoice
from csm_cli.recipe.reference import Reference
from csm_cli.recipe.sentences import training_texts, training_words
from csm_cli.recipe.sounds import Samples, nearest, voice_print
from csm_cli.recipe.takes import speak
from csm_cli.train.run import TrainingEvent, TrainingRun
from csm_cli.types import Conversation, GenerationOptions, Turn

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.train.settings import TrainSettings

NEWCOMER = EspeakVoice("en-us+m1", 170, pitch=67, range=0)
"""Not among the voices the bundled voice was made from; at 100 Hz, one of the pitches that its codec can say."""

_SPEAKER = 8  # a number without a voice of its own
_SEED = 77
_CANDIDATES = 100
_SLOTS = 8
_HELD_OUT = 25  # one example in so many


@dataclass(frozen=True)
class Demo:
    """minutes: of speech to learn from; sentences: measured before and after."""

    minutes: float = 10.0
    sentences: int = 50


def measure(settings: TrainSettings, demo: Demo, tell: Callable[[str | TrainingEvent], None]) -> dict[str, Any]:
    """Figures of the model without and with the adapter that it learns; `tell` hears what is going on.

    voice_match: share of takes, without context, that are nearest to the newcomer among all voices; retrieval: nearest,
    by words, to their own text of 100.
    """
    reference, checkpoint = Reference(), open_checkpoint(settings.model)
    tell(f"speaking and encoding {demo.minutes:g} minutes as {NEWCOMER.name}")
    _prepare(reference, checkpoint, Path(settings.data), demo.minutes)
    texts = reference.texts[: demo.sentences]
    tell("measuring the model as it is")
    before = _figures(reference, checkpoint, texts)
    began, processor = time.monotonic(), time.process_time()
    run = TrainingRun(settings, device="cpu")
    for event in run.events():
        tell(event)
    minutes, cpu_minutes = (time.monotonic() - began) / 60, (time.process_time() - processor) / 60
    tell("measuring what it has learned")
    after = _figures(reference, open_checkpoint(settings.model, adapter=str(run.folder / "best")), texts)
    return {
        "bench": "finetune",
        "voice": NEWCOMER.name,
        "speech_minutes": demo.minutes,
        "steps": settings.steps,
        "sentences": len(texts),
        "voice_match_before": before[0],
        "voice_match": after[0],
        "voice_match_of_codec": _codec_match(reference, checkpoint, texts),
        "retrieval_before": before[1],
        "retrieval": after[1],
        "minutes": minutes,
        "cpu_minutes": cpu_minutes,
    }


def _prepare(reference: Reference, checkpoint: Checkpoint, folder: Path, minutes: float) -> None:
    codec = _codec(checkpoint)
    made = list(_examples(reference, codec, minutes))
    writer = StoreWriter(folder, CodecIdentity(codec_identity(checkpoint), codec.codebooks, codec.frame_rate))
    writer.write(0, made)
    writer.finish(1)


def _examples(reference: Reference, codec: Codec, minutes: float) -> Iterator[Example]:
    """Sentences that are not held out, until they last so many minutes."""
    seconds = 0.0
    for number, text in enumerate(training_texts(_SEED, training_words())):
        samples = reference.speech(text, NEWCOMER)
        codes = codec.encode(torch.from_numpy(samples))
        held_out = number % _HELD_OUT == 0
        yield Example(f"{number:05}", (CodedTurn(_SPEAKER, text, codes),), held_out)
        seconds += len(samples) / RATE
        if seconds >= 60 * minutes:
            return


def _codec(checkpoint: Checkpoint) -> Codec:
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)


def _figures(reference: Reference, checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[float, float]:
    """voice_match and retrieval of takes without context."""
    synth = Synthesizer(checkpoint, torch.device("cpu"), torch.float32, _SLOTS)
    turns = [Turn(_SPEAKER, text, options=GenerationOptions(seed=_SEED + index)) for index, text in enumerate(texts)]
    takes = [take.samples for take in speak(synth, [Conversation((turn,)) for turn in turns])]
    candidates = [reference.features(text) for text in reference.texts[:_CANDIDATES]]
    found = [nearest(take, candidates) == index for index, take in enumerate(takes)]
    return _matched(reference, takes, texts), sum(found) / len(found)


def _codec_match(reference: Reference, checkpoint: Checkpoint, texts: Sequence[str]) -> float:
    """voice_match of the newcomer's own speech through the codec: what could be reached."""
    codec = _codec(checkpoint)
    spoken = [torch.from_numpy(reference.speech(text, NEWCOMER)) for text in texts]
    return _matched(reference, [codec.decode(codec.encode(samples)).numpy() for samples in spoken], texts)


def _matched(reference: Reference, takes: Sequence[Samples], texts: Sequence[str]) -> float:
    hits = []
    for take, text in zip(takes, texts, strict=True):
        voices = [reference.speech(text, voice) for voice in VOICES]
        prints = np.stack([voice_print(each) for each in (*voices, reference.speech(text, NEWCOMER))])
        apart = ((prints - voice_print(take)) / reference.deviation) ** 2
        hits.append(int(apart.sum(axis=1).argmin()) == len(VOICES))
    return sum(hits) / len(hits)
