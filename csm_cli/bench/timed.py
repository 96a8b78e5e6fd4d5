"""The engine under a stopwatch: fresh prompts of a fixed length, and speech that no frame ends."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from csm_cli.bench.floor import now
from csm_cli.codec import Codec
from csm_cli.engine import Engine, Request, Sampling
from csm_cli.errors import UsageError
from csm_cli.model import CsmModel

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

_WARM_UP = 5
_IDS = 200  # text ids below this are bytes or words in every tokenizer


@dataclass(frozen=True)
class Load:
    """What is decoded: `frames` frames for each of `batch` rows, after `context` positions of text."""

    batch: int = 1
    context: int = 100
    frames: int = 60


class Ready:
    """A checkpoint's model and codec on a device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.model = CsmModel(checkpoint.config, checkpoint.weights, device, dtype)
        self.model.config = replace(checkpoint.config, eos=-1)  # which no code equals

    @cached_property
    def codec(self) -> Codec:
        checkpoint, codebooks = self.checkpoint, self.checkpoint.config.codebooks
        return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, self.device, codebooks)


class Timed:
    """An engine of its own for one load, warmed up.

    Raises:
        UsageError: context and frames exceed the window.
    """

    def __init__(self, ready: Ready, load: Load) -> None:
        window = ready.checkpoint.config.backbone.positions
        if load.context + load.frames > window:
            raise UsageError(f"{load.context} positions and {load.frames} frames exceed the window of {window}")
        self.ready, self.load = ready, load
        self.engine = Engine(ready.model, load.batch)
        self._seed = 0
        self.codec_frame(self.frames(min(_WARM_UP, load.frames))[1])

    def frames(self, count: int) -> tuple[list[float], Tensor]:
        """Seconds of each of `count` steps of the whole batch and the codes [T, K] of its first row."""
        self.engine.release()
        for _ in range(self.load.batch):
            self.engine.admit(self.request(count))
        seconds, codes = [], []
        for _ in range(count):
            started = now(self.ready.device)
            codes.append(self.engine.step()[0].codes)
            seconds.append(now(self.ready.device) - started)
        return seconds, torch.stack(codes)

    def first_audio(self) -> float:
        """Seconds from a fresh prompt to the samples of its first frame."""
        self.engine.release()
        started = now(self.ready.device)
        self.engine.admit(self.request(2))
        self.ready.codec.decoder().push(self.engine.step()[0].codes[None]).cpu()
        return now(self.ready.device) - started

    def codec_frame(self, codes: Tensor) -> float:
        """Seconds that one frame of these codes [T, K] takes to become sound."""
        started = now(self.ready.device)
        self.ready.codec.decode(codes).cpu()
        return (now(self.ready.device) - started) / len(codes)

    def text(self) -> Tensor:
        """Text ids [S], others each time."""
        self._seed += 1
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randint(0, _IDS, (self.load.context,), generator=generator)

    def sampling(self, frames: int) -> Sampling:
        """The checkpoint's own."""
        given = self.ready.checkpoint.defaults
        temperature, top_k = given.temperature or 0.0, given.top_k or 0
        depth_temperature = temperature if given.depth_temperature is None else given.depth_temperature
        depth_top_k = top_k if given.depth_top_k is None else given.depth_top_k
        return Sampling(temperature, top_k, depth_temperature, depth_top_k, self._seed, frames)

    def request(self, frames: int) -> Request:
        """A fresh prompt."""
        rows = torch.full((self.load.context, self.ready.checkpoint.config.codebooks + 1), -1)
        rows[:, -1] = self.text()
        return Request(rows, self.sampling(frames))


def peak_memory(device: torch.device) -> float:
    """Megabytes: the most allocated on CUDA, the most resident elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
