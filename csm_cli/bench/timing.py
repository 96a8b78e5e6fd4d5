"""The engine under a stopwatch: fresh prompts of a fixed length, and speech that no frame ends."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csm_cli.bench.roofline import synchronized_now
from csm_cli.engine import Engine, Request, SamplingParams
from csm_cli.errors import UsageError
from csm_cli.generation.take import TakeBuilder, TakeSpec, chunk_frames
from csm_cli.models.csm import CsmModel
from csm_cli.models.mimi import ChunkDecoder, Codec

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

_WARM_UP = 5
_SPEECHES = 3
_IDS = 200  # text ids below this are bytes or words in every tokenizer


@dataclass(frozen=True)
class SpeedLoad:
    """What is decoded: `frames` frames for each of `batch` rows, after `context` positions of text."""

    batch: int = 1
    context: int = 100
    frames: int = 60


class PreparedBench:
    """A checkpoint's model and codec on a device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.model = CsmModel(checkpoint.config, checkpoint.weights, device, dtype)
        self.model.config = replace(checkpoint.config, eos=-1)  # which no code equals

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)


class TimingResult:
    """An engine of its own for one load, warmed up. compile: its frames go through torch.compile.

    Raises:
        UsageError: context and frames exceed the window.
    """

    def __init__(self, ready: PreparedBench, load: SpeedLoad, compile: bool = False) -> None:
        window = ready.checkpoint.config.backbone.max_seq_len
        if load.context + load.frames > window:
            raise UsageError(f"{load.context} positions and {load.frames} frames exceed the window of {window}")
        self.ready, self.load = ready, load
        self.engine = Engine(ready.model, load.batch, compile)
        self._seed = 0
        self.engine.prepare(self.sampling(load.frames))
        self.codec_frame(self.frames(min(_WARM_UP, load.frames))[1])

    def frames(self, count: int) -> tuple[list[float], Tensor]:
        """Seconds of each of `count` frames of the whole batch and the codes [T, B, K]."""
        self.engine.release()
        for _ in range(self.load.batch):
            self.engine.admit(self.request(count))
        seconds: list[float] = []
        codes: list[Tensor] = []
        while len(seconds) < count:
            started = synchronized_now(self.ready.device)
            frames = self.engine.step()
            took = synchronized_now(self.ready.device) - started
            drawn = torch.stack([frame.codes for frame in frames])
            codes.append(drawn.view(-1, self.load.batch, drawn.shape[-1]))
            seconds += [took / len(codes[-1])] * len(codes[-1])
        return seconds, torch.cat(codes)

    def first_audio(self) -> float:
        """Seconds from a fresh prompt to the samples of its first frame."""
        self.engine.release()
        started = synchronized_now(self.ready.device)
        self.engine.admit(self.request(2))
        codec = self.ready.codec
        ChunkDecoder(codec).submit(codec.decoder(), self.engine.step()[0].codes[None]).samples()
        return synchronized_now(self.ready.device) - started

    def codec_frame(self, codes: Tensor) -> float:
        """Seconds that a frame of all rows takes to become sound: codes [T, B, K], in the chunks of speaking."""
        codec, deck = self.ready.codec, self._deck()
        decoders = [codec.decoder() for _ in range(codes.shape[1])]
        started = synchronized_now(self.ready.device)
        done = 0
        while done < len(codes):
            rows = codes[done : done + chunk_frames(done, codec.frame_rate)].unbind(1)
            done += len(rows[0])
            for sound in [deck.submit(each, row) for each, row in zip(decoders, rows, strict=True)]:
                sound.samples()
        return (synchronized_now(self.ready.device) - started) / len(codes)

    def whole_frame(self, frame: float, codec: float) -> float:
        """Seconds of a frame of all rows with its sound, from those of each.

        Their sum, but where the codec works beside the frame loop what speaking takes.
        """
        if not self._deck().deferred:
            return frame + codec
        return median(self.speech() for _ in range(_SPEECHES))

    def speech(self) -> float:
        """Seconds of each frame of all rows and its sound, spoken as takes are."""
        self.engine.release()
        deck, tapes = self._deck(), {}
        for _ in range(self.load.batch):
            request = self.request(self.load.frames)
            tapes[request] = TakeBuilder(deck, TakeSpec("", 0))
            self.engine.admit(request)
        started = synchronized_now(self.ready.device)
        while self.engine.busy:
            for frame in self.engine.step(deck.flush):
                tapes[frame.request].add_frame(frame.codes)
        for tape in tapes.values():
            tape.finish_frames()
        for tape in tapes.values():
            tape.finish("cap")
        return (synchronized_now(self.ready.device) - started) / self.load.frames

    def _deck(self) -> ChunkDecoder:
        return ChunkDecoder(self.ready.codec, rows=self.load.batch)

    def text(self) -> Tensor:
        """Text ids [S], others each time."""
        self._seed += 1
        return text_ids(self.load, self._seed)

    def sampling(self, frames: int) -> SamplingParams:
        return published_sampling(self.ready, frames, self._seed)

    def request(self, frames: int) -> Request:
        """A fresh prompt."""
        self._seed += 1
        return fresh_request(self.ready, replace(self.load, frames=frames), self._seed)


def text_ids(load: SpeedLoad, seed: int) -> Tensor:
    """[S]"""
    return torch.randint(0, _IDS, (load.context,), generator=torch.Generator().manual_seed(seed))


def published_sampling(ready: PreparedBench, frames: int, seed: int) -> SamplingParams:
    """The checkpoint's own."""
    return SamplingParams(*ready.checkpoint.defaults.sampling, seed, frames)


def fresh_request(ready: PreparedBench, load: SpeedLoad, seed: int) -> Request:
    """Of one row."""
    rows = torch.full((load.context, ready.checkpoint.config.codebooks + 1), -1)
    rows[:, -1] = text_ids(load, seed)
    return Request(rows, published_sampling(ready, load.frames, seed))


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most allocated on CUDA, the most resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
