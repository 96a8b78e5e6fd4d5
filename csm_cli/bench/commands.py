"""`csm bench start` and `batch-overhead`: what whole commands cost besides decoding."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from csm_cli.audio.io import Audio
from csm_cli.bench.timing import peak_memory_mb
from csm_cli.checkpoint import Checkpoint
from csm_cli.errors import CsmError
from csm_cli.generation.events import Event, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.verification import Recognizer
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy

SENTENCE = "The old clock on the wall has stopped again today."
_STUB_SECONDS = 0.4  # of audio per item
_FEW_ITEMS = 10


def measure_start(model: str | None, runs: int = 3) -> dict[str, Any]:
    """Cold processes of `csm say`, compared with what they need at least: importing torch, and decoding.

    Both kinds of process alternate; figures are medians.

    Raises:
        CsmError: `csm say` failed.
    """
    imports, totals, decodes = [], [], []
    options = ["--model", model] if model else []
    for _ in range(runs):
        imports.append(run_process([sys.executable, "-c", "import torch"])[0])
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "out.wav")
            command = [sys.executable, "-m", "csm_cli", "say", SENTENCE, "--seed", "1", "--json", "-o", output]
            seconds, stdout = run_process([*command, *options])
        result = json.loads(stdout)
        totals.append(seconds)
        decodes.append(result["rtf"] * result["duration_s"])
    return {
        "bench": "start",
        "model": result["model"],
        "say_seconds": median(totals),
        "import_torch_seconds": median(imports),
        "decode_seconds": median(decodes),
        "times_minimum": median(totals) / (median(imports) + median(decodes)),
    }


def run_process(command: Sequence[str]) -> tuple[float, str]:
    """Seconds that a process takes, and its standard output. Raises CsmError if it fails."""
    start = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise CsmError(f"{' '.join(command[1:4])} failed: {(process.stderr.strip().splitlines() or ['?'])[-1]}")
    return seconds, process.stdout


class StubSynthesizer(Synthesizer):
    """Returns the same noise at once for every turn; loads no weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device("cpu")
        self.codec = cast(Codec, codec_config(checkpoint.codec_config))  # only its rates are read

    def speak(
        self,
        conversations: Iterable[Conversation],
        flags: GenerationOptions,
        retry_policy: RetryPolicy | None = None,
        recognizer: Recognizer | None = None,
    ) -> Iterator[Event]:
        frames, rate = round(_STUB_SECONDS * self.codec.frame_rate), self.codec.rate
        codes = torch.zeros(frames, self.checkpoint.config.codebooks, dtype=torch.int64)
        noise = np.random.default_rng(0).normal(0, 0.1, round(_STUB_SECONDS * rate)).astype(np.float32)
        for conversation in conversations:
            for turn in conversation.turns:
                yield Utterance(conversation, turn, codes, Audio(noise, rate), "eos")


def measure_batch_overhead(items: int, folder: Path, run: Callable[[Path], None]) -> dict[str, Any]:
    """Milliseconds per manifest item, fsync included, and peak memory. run: executes a manifest with the stub."""
    manifests = {count: folder / f"{count}.jsonl" for count in (_FEW_ITEMS, items)}
    for count, path in manifests.items():
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                item = {"id": f"item-{number}", "speaker": number % 2, "text": f"This is item number {number} of many."}
                print(json.dumps(item), file=file)
    run(manifests[_FEW_ITEMS])
    cpu = torch.device("cpu")
    peak_before, start, cpu_start = peak_memory_mb(cpu), time.perf_counter(), time.process_time()
    run(manifests[items])
    seconds, cpu_seconds, peak = time.perf_counter() - start, time.process_time() - cpu_start, peak_memory_mb(cpu)
    return {
        "bench": "batch-overhead",
        "items": items,
        "ms_per_item": 1e3 * seconds / items,
        "cpu_ms_per_item": 1e3 * cpu_seconds / items,
        "peak_mb": peak,
        f"peak_mb_{_FEW_ITEMS}_items": peak_before,
        "added_bytes_per_item": (peak - peak_before) * 2**20 / items,
    }
