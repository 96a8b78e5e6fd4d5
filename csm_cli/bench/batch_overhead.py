"""What a batch costs besides decoding: its lines are spoken by a stub that has its sound ready."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from csm_cli.audio.io import Audio
from csm_cli.checkpoint import Checkpoint
from csm_cli.generation.events import Event, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.verification import Recognizer
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy

SECONDS = 0.4  # of sound each


class StubSynthesizer(Synthesizer):
    """Says the same noise at once, whatever it is asked to say; no weights of the model are loaded."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device("cpu")
        self.codec = cast(Codec, codec_config(checkpoint.codec_config))  # its rates are all that is looked at

    def speak(
        self,
        conversations: Iterable[Conversation],
        flags: GenerationOptions,
        retry_policy: RetryPolicy | None = None,
        recognizer: Recognizer | None = None,
    ) -> Iterator[Event]:
        frames, rate = round(SECONDS * self.codec.frame_rate), self.codec.rate
        codes = torch.zeros(frames, self.checkpoint.config.codebooks, dtype=torch.int64)
        noise = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * rate)).astype(np.float32)
        for conversation in conversations:
            for turn in conversation.turns:
                yield Utterance(conversation, turn, codes, Audio(noise, rate), "eos")


def write_manifest(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            line = {"id": f"line-{number}", "speaker": number % 2, "text": f"This is line number {number} of many."}
            print(json.dumps(line), file=file)


def measure(count: int, folder: Path, run: Callable[[Path], None]) -> dict[str, Any]:
    """Milliseconds for each of `count` lines, fsync included, and the most memory resident; `run` speaks a manifest."""
    manifest = folder / "lines.jsonl"
    few = folder / "few.jsonl"
    write_manifest(manifest, count)
    write_manifest(few, 10)
    run(few)
    before, began, worked = _peak_mb(), time.perf_counter(), time.process_time()
    run(manifest)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    return {
        "bench": "lines",
        "lines": count,
        "ms_per_line": 1e3 * seconds / count,
        "processor_ms_per_line": 1e3 * processor / count,
        "peak_mb": _peak_mb(),
        "peak_mb_of_ten_lines": before,
        "growth_bytes_per_line": (_peak_mb() - before) * 1e6 / count,
    }


def _peak_mb() -> float:
    """The most memory this process ever held, which Linux counts in KiB and macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
