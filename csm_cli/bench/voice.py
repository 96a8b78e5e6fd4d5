"""`csm bench voice`: intelligibility, clean stops, speed, pitch and naturalness of synthesized sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from csm_cli.audio.io import Audio
from csm_cli.generation.events import ConversationFailed, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.verification import Recognizer, compare
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

HELD_OUT_FILE = Path(__file__).with_name("held_out.txt")
_SEED = 1000
_MIN_PITCH, _MAX_PITCH, _PITCH_RATE = 60.0, 500.0, 16_000  # Hz
_MOS_RATE = 16_000  # Hz


def held_out_sentences() -> list[str]:
    """Sentences that the bundled voice was not trained on: their rare words are not in its corpus."""
    return HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()


def measure(
    synth: Synthesizer, recognizer: Recognizer, sentences: Sequence[str], log: Callable[[str], None]
) -> dict[str, Any]:
    """Speaks each sentence on its own, by speaker 0 with the checkpoint's sampling, and judges the takes.

    word_error_rate: errors of all sentences over all their words, as the recognizer transcribes them. clean_stops:
    share of sentences that the model ended itself. rtf: synthesis time over audio duration, without the first sentence.
    pitch_spread: standard deviation of a sentence's pitch in semitones, median over sentences. mos: mean DistillMOS
    score (1 to 5), None unless the package `distillmos` is installed.

    Raises:
        CsmError: synthesis failed, or the recognizer cannot be loaded.
    """
    log(f"synthesizing {len(sentences)} sentences ...")
    utterances = _synthesize(synth, sentences)
    log("transcribing ...")
    words = [len(text.split()) for text in sentences]
    errors = [
        compare(text, recognizer.transcribe(each.audio)).error_rate * count if len(each.audio.samples) else count
        for text, each, count in zip(sentences, utterances, words, strict=True)
    ]
    audible = [each.audio for each in utterances if len(each.audio.samples)]
    timed = utterances[1:] or utterances
    duration = sum(each.audio.duration for each in timed)
    log("measuring pitch ...")
    spreads = [spread for audio in audible if (spread := pitch_spread(audio)) is not None]
    mos = None
    if audible and find_spec("distillmos"):
        log("estimating MOS ...")
        mos = _mean_opinion_score(audible)
    return {
        "bench": "voice",
        "model": synth.checkpoint.name,
        "device": synth.device.type,
        "threads": torch.get_num_threads(),
        "sentences": len(sentences),
        "word_error_rate": sum(errors) / sum(words),
        "clean_stops": sum(each.stop == "eos" for each in utterances) / len(utterances),
        "rtf": sum(each.seconds for each in timed) / duration if duration else None,
        "pitch_spread_semitones": median(spreads) if spreads else None,
        "mos": mos,
    }


def _synthesize(synth: Synthesizer, sentences: Sequence[str]) -> list[Utterance]:
    """One take of each sentence, in order."""
    conversations = [
        Conversation((Turn(0, text, options=GenerationOptions(seed=_SEED + number)),), id=str(number))
        for number, text in enumerate(sentences)
    ]
    utterances: dict[str, Utterance] = {}
    for event in synth.speak(conversations, GenerationOptions(), RetryPolicy()):
        if isinstance(event, ConversationFailed):
            raise event.error
        if isinstance(event, Utterance):
            utterances[event.conversation.id] = event
    return [utterances[each.id] for each in conversations]


def pitch_spread(audio: Audio) -> float | None:
    """Standard deviation of the pitch in semitones over the voiced frames (pYIN); None if there are none."""
    import librosa
    import soxr

    samples = soxr.resample(audio.samples, audio.rate, _PITCH_RATE)
    pitch, voiced, _ = librosa.pyin(samples, fmin=_MIN_PITCH, fmax=_MAX_PITCH, sr=_PITCH_RATE, frame_length=1024)
    return float(np.std(12 * np.log2(pitch[voiced]))) if voiced.any() else None


def _mean_opinion_score(clips: Sequence[Audio]) -> float:
    import distillmos
    import soxr

    judge = distillmos.ConvTransformerSQAModel().eval()
    with torch.inference_mode():
        return mean(
            float(judge(torch.from_numpy(soxr.resample(clip.samples, clip.rate, _MOS_RATE))[None])) for clip in clips
        )
