"""Demonstration of fine-tuning: `python -m csm_cli.recipe.finetune_demo configs/finetune/demo.yaml`.

The bundled voice learns, by LoRA, an espeak-ng voice that it was not trained on, and is measured before and after.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csm_cli.checkpoint import open_checkpoint
from csm_cli.cli.console import configure_logging, emit_json, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.cli.train import TrainingReporter
from csm_cli.data.prepare import codec_digest
from csm_cli.data.store import CodecIdentity, CodedTurn, Example, StoreWriter
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.models.mimi import Codec
from csm_cli.recipe.corpus import RATE, VOICES, EspeakVoice
from csm_cli.recipe.measure import Reference, Samples, nearest, voice_print
from csm_cli.recipe.sentences import training_texts, training_words
from csm_cli.recipe.voice_bench import speak
from csm_cli.train.run import TrainingEvent, TrainingRun
from csm_cli.train.settings import read_train_settings
from csm_cli.types import Conversation, GenerationOptions, Turn

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.train.settings import TrainSettings

NEW_VOICE = EspeakVoice("en-us+m1", 170, pitch=67, range=0)
"""Not among the bundled voice's training voices; 100 Hz, a pitch that its codec reproduces."""

_SPEAKER = 8  # a number without a voice of its own
_SEED = 77
_CANDIDATES = 100
_SLOTS = 8
_HELD_OUT_EVERY = 25  # examples


@dataclass(frozen=True)
class Demo:
    """minutes: of training speech; sentences: number measured before and after."""

    minutes: float = 10.0
    sentences: int = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="settings of csm train")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of training speech")
    parser.add_argument("--sentences", type=int, default=50, help="sentences measured before and after")
    options = parser.parse_args(arguments)
    configure_logging(OutputOptions())
    settings = read_train_settings(options.config)
    with TrainingReporter(settings.steps, quiet=False) as reporter:

        def report(event: str | TrainingEvent) -> None:
            if isinstance(event, str):
                log_line(f"{event} ...")
            else:
                reporter.report(event)

        figures = measure_demo(settings, Demo(options.minutes, options.sentences), report)
    emit_json({name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()})


def measure_demo(settings: TrainSettings, demo: Demo, report: Callable[[str | TrainingEvent], None]) -> dict[str, Any]:
    """Trains the adapter; figures of the model without and with it. `report` is called with progress.

    voice_match: share of takes without context nearest to the new voice among all voices; retrieval: share whose
    nearest of 100 sentences is their own text.
    """
    reference, checkpoint = Reference(), open_checkpoint(settings.model)
    report(f"synthesizing and encoding {demo.minutes:g} minutes of {NEW_VOICE.name}")
    codec = _load_codec(checkpoint)
    examples = list(_examples(reference, codec, demo.minutes))
    identity = CodecIdentity(codec_digest(checkpoint), codec.codebooks, codec.frame_rate)
    writer = StoreWriter(Path(settings.data), identity)
    writer.write(0, examples)
    writer.finish(1)
    texts = reference.texts[: demo.sentences]
    report("measuring the base model")
    match_before, retrieval_before = _measure(reference, checkpoint, texts)
    start, cpu_start = time.monotonic(), time.process_time()
    run = TrainingRun(settings, device="cpu")
    for event in run.events():
        report(event)
    minutes, cpu_minutes = (time.monotonic() - start) / 60, (time.process_time() - cpu_start) / 60
    report("measuring the adapter")
    adapted = open_checkpoint(settings.model, adapter=str(run.folder / "best"))
    match, retrieval = _measure(reference, adapted, texts)
    rendered = [torch.from_numpy(reference.speech(text, NEW_VOICE)) for text in texts]
    round_trips = [codec.decode(codec.encode(samples)).numpy() for samples in rendered]
    return {
        "voice": NEW_VOICE.name,
        "speech_minutes": demo.minutes,
        "steps": settings.steps,
        "sentences": len(texts),
        "voice_match_before": match_before,
        "voice_match": match,
        "voice_match_of_codec": _voice_match(reference, round_trips, texts),
        "retrieval_before": retrieval_before,
        "retrieval": retrieval,
        "minutes": minutes,
        "cpu_minutes": cpu_minutes,
    }


def _examples(reference: Reference, codec: Codec, minutes: float) -> Iterator[Example]:
    """Training sentences in the new voice, up to so many minutes."""
    seconds = 0.0
    for number, text in enumerate(training_texts(_SEED, training_words())):
        samples = reference.speech(text, NEW_VOICE)
        turn = CodedTurn(_SPEAKER, text, codec.encode(torch.from_numpy(samples)))
        yield Example(f"{number:05}", (turn,), held_out=number % _HELD_OUT_EVERY == 0)
        seconds += len(samples) / RATE
        if seconds >= 60 * minutes:
            return


def _load_codec(checkpoint: Checkpoint) -> Codec:
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)


def _measure(reference: Reference, checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[float, float]:
    """voice_match and retrieval of takes without context."""
    synth = Synthesizer(checkpoint, torch.device("cpu"), torch.float32, _SLOTS)
    turns = [Turn(_SPEAKER, text, options=GenerationOptions(seed=_SEED + index)) for index, text in enumerate(texts)]
    takes = [take.samples for take in speak(synth, [Conversation((turn,)) for turn in turns])]
    candidates = [reference.features(text) for text in reference.texts[:_CANDIDATES]]
    hits = [nearest(take, candidates) == index for index, take in enumerate(takes)]
    return _voice_match(reference, takes, texts), sum(hits) / len(hits)


def _voice_match(reference: Reference, takes: Sequence[Samples], texts: Sequence[str]) -> float:
    """Share of takes whose nearest voice print is the new voice's."""
    hits = 0
    for take, text in zip(takes, texts, strict=True):
        prints = np.stack([voice_print(reference.speech(text, voice)) for voice in (*VOICES, NEW_VOICE)])
        distances = (((prints - voice_print(take)) / reference.deviation) ** 2).sum(axis=1)
        hits += int(distances.argmin()) == len(VOICES)
    return hits / len(takes)


if __name__ == "__main__":
    main()
