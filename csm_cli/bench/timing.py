"""Clocks, and a timed engine: prompts of a fixed length, and speech that does not end before its last frame."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from csm_cli.checkpoint import Checkpoint
from csm_cli.engine import Engine, Request, SamplingParams
from csm_cli.errors import UsageError
from csm_cli.generation.take import TakeBuilder, TakeSpec, chunk_frames
from csm_cli.models.csm.model import CsmModel
from csm_cli.models.mimi import ChunkDecoder, Codec

_WARM_UP_FRAMES = 5
_UTTERANCES = 3
_MAX_TEXT_ID = 200  # lower ids are bytes or words in every tokenizer


def clock(device: torch.device) -> str:
    """What `synchronized_now` reads: CPU time on a single CPU thread, which other programs hardly affect, else wall."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def synchronized_now(device: torch.device) -> float:
    """Seconds on the clock, after the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.process_time() if clock(device) == "cpu" else time.perf_counter()


def peak_memory_mb(device: torch.device) -> float:
    """Peak allocated memory on CUDA, elsewhere this process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage it excludes what the process was before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass(frozen=True)
class Workload:
    """`frames` frames for each of `batch` rows, after `context` positions of text."""

    batch: int = 1
    context: int = 100
    frames: int = 60


class BenchModel:
    """A checkpoint's model and codec on a device. The model never samples the end of speech."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.model = CsmModel(checkpoint.config, checkpoint.weights, device, dtype)
        self.model.config = replace(checkpoint.config, eos=-1)  # equals no code
        self._seeds = count(1)

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)

    def request(self, context: int, frames: int) -> Request:
        """`context` positions of random text, others each time, sampled by the checkpoint's defaults."""
        seed = next(self._seeds)
        prompt = torch.full((context, self.checkpoint.config.codebooks + 1), -1)
        prompt[:, -1] = torch.randint(0, _MAX_TEXT_ID, (context,), generator=torch.Generator().manual_seed(seed))
        return Request(prompt, SamplingParams(*self.checkpoint.defaults.sampling, seed, frames))


class TimedEngine:
    """An engine for one workload, warmed up. compile: as for `Engine`.

    Raises:
        UsageError: context and frames exceed the model's context window.
    """

    def __init__(self, bench: BenchModel, workload: Workload, compile: bool = False) -> None:
        window = bench.checkpoint.config.backbone.max_seq_len
        if workload.context + workload.frames > window:
            raise UsageError(
                f"{workload.context} positions and {workload.frames} frames exceed the context window of {window}"
            )
        self.bench, self.workload = bench, workload
        self.engine = Engine(bench.model, workload.batch, compile)
        self.engine.prepare(bench.request(workload.context, workload.frames).sampling)
        self.codec_frame(self.frames(min(_WARM_UP_FRAMES, workload.frames))[1])

    def frames(self, length: int) -> tuple[list[float], Tensor]:
        """Seconds of each of `length` frames of the whole batch, and the codes [T, B, K]."""
        self.engine.release()
        for _ in range(self.workload.batch):
            self.engine.admit(self.bench.request(self.workload.context, length))
        seconds: list[float] = []
        codes: list[Tensor] = []
        while len(seconds) < length:
            start = synchronized_now(self.bench.device)
            frames = self.engine.step()
            elapsed = synchronized_now(self.bench.device) - start
            step_codes = torch.stack([frame.codes for frame in frames])
            codes.append(step_codes.view(-1, self.workload.batch, step_codes.shape[-1]))
            seconds += [elapsed / len(codes[-1])] * len(codes[-1])
        return seconds, torch.cat(codes)

    def first_audio(self) -> float:
        """Seconds from a new prompt to the samples of its first frame."""
        self.engine.release()
        start = synchronized_now(self.bench.device)
        self.engine.admit(self.bench.request(self.workload.context, 2))
        codec = self.bench.codec
        ChunkDecoder(codec).submit(codec.decoder(), self.engine.step()[0].codes[None]).samples()
        return synchronized_now(self.bench.device) - start

    def codec_frame(self, codes: Tensor) -> float:
        """Seconds per frame of decoding codes [T, B, K] to samples, in the chunks of synthesis."""
        codec, chunk_decoder = self.bench.codec, self._chunk_decoder()
        decoders = [codec.decoder() for _ in range(codes.shape[1])]
        start = synchronized_now(self.bench.device)
        done = 0
        while done < len(codes):
            rows = codes[done : done + chunk_frames(done, codec.frame_rate)].unbind(1)
            done += len(rows[0])
            for chunk in [chunk_decoder.submit(each, row) for each, row in zip(decoders, rows, strict=True)]:
                chunk.samples()
        return (synchronized_now(self.bench.device) - start) / len(codes)

    def total_frame(self, frame: float, codec: float) -> float:
        """Seconds per frame of model and codec: the sum of both, or measured if the codec runs beside the model."""
        if not self._chunk_decoder().deferred:
            return frame + codec
        return median(self.utterance() for _ in range(_UTTERANCES))

    def utterance(self) -> float:
        """Seconds per frame of model and codec, as in synthesis."""
        self.engine.release()
        chunk_decoder, builders = self._chunk_decoder(), {}
        for _ in range(self.workload.batch):
            request = self.bench.request(self.workload.context, self.workload.frames)
            builders[request] = TakeBuilder(chunk_decoder, TakeSpec("", 0))
            self.engine.admit(request)
        start = synchronized_now(self.bench.device)
        while self.engine.busy:
            for frame in self.engine.step(chunk_decoder.flush):
                builders[frame.request].add_frame(frame.codes)
        for builder in builders.values():
            builder.finish_frames()
        for builder in builders.values():
            builder.finish("cap")
        return (synchronized_now(self.bench.device) - start) / self.workload.frames

    def _chunk_decoder(self) -> ChunkDecoder:
        return ChunkDecoder(self.bench.codec, rows=self.workload.batch)
