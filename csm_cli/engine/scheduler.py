"""The engine: requests are assigned to slots (batch rows of the KV cache) and decoded together, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from csm_cli.engine.decode_step import INVALID_CODE, DecodeShape, DecodeState
from csm_cli.engine.requests import Frame, Request, SamplingParams
from csm_cli.engine.runner import ModelRunner
from csm_cli.engine.sampler import Uniforms
from csm_cli.models.csm.kv_cache import PrefillSlots
from csm_cli.models.csm.model import CsmModel

_MIN_CPU_SHARE = 0.8  # of the wall time; a thread that waits for the others spins, so it has nearly all if undisturbed
_MIN_MEASURED_STEPS = 10
_MIN_REUSED_POSITIONS = 16  # a shorter common prefix is the start of any text, and no reason to choose a slot

IDLE_SAMPLING = SamplingParams(temperature=0, top_k=1, depth_temperature=0, depth_top_k=1, seed=0, max_frames=0)


def decode(engine: Engine, next_request: Callable[[], Request | None]) -> Iterator[Frame]:
    """The frames of `decode_loop` one by one."""
    for frames in decode_loop(engine, next_request):
        yield from frames


def decode_loop(
    engine: Engine,
    next_request: Callable[[], Request | None],
    while_waiting: Callable[[], None] = lambda: None,
    on_rejected: Callable[[Request, BaseException], None] | None = None,
) -> Generator[list[Frame]]:
    """Yields the frames of each step, of all requests together, until there are no requests left.

    next_request: called whenever a slot is free; None means "not now". A request that follows a frame with a stop
    reason (the conversation's next turn) starts at once, on the KV cache which that frame left. Closing the generator
    frees the slots. while_waiting: as for `Engine.step`. on_rejected: gets the exception of a request whose prefill
    failed, and the others go on; without it, the exception is raised.
    """
    try:
        while True:
            while len(engine.busy) < len(engine.slots) and (request := next_request()):
                try:
                    engine.admit(request)
                except BaseException as problem:
                    if on_rejected is None:
                        raise
                    on_rejected(request, problem)
            if not engine.busy:
                return
            with engine.contention.measure_step():
                frames = engine.step(while_waiting)
            yield frames
    finally:
        engine.release()


class ContentionMonitor:
    """Compares the wall time of decode steps with the CPU time of the thread that runs them.

    Where several threads share each operator, one that loses its processor to another program delays them all.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = self._lost = 0.0
        self._worst = (0.0, 0.0)  # lost and wall seconds of the step that lost most

    @contextmanager
    def measure_step(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.add(time.perf_counter() - wall, time.thread_time() - cpu)

    def add(self, seconds: float, cpu_seconds: float) -> None:
        lost = seconds - cpu_seconds
        self._steps += 1
        self._seconds += seconds
        self._lost += lost
        self._worst = max(self._worst, (lost, seconds))

    @property
    def detected(self) -> bool:
        """Whether other programs took a good part of the processor. Meaningless if a GPU does the work.

        The worst step is left out: it may have waited for a disk or been stopped at a terminal.
        """
        lost, seconds = self._lost - self._worst[0], self._seconds - self._worst[1]
        return self._steps >= _MIN_MEASURED_STEPS and lost > (1 - _MIN_CPU_SHARE) * seconds


class Slot:
    """One row of the KV cache: the prompt and the frames it holds, and the request it serves, if any.

    admitted: a number that grows with each request; of the last one that this slot served.
    """

    def __init__(self, codebooks: int) -> None:
        self.prompt = torch.empty(0, codebooks + 1, dtype=torch.int64)
        self.frames: list[Tensor] = []
        self.request: Request | None = None
        self.admitted = 0
        self.uniforms = Uniforms(0, codebooks)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.frames)

    def cached_prefix_len(self, prompt: Tensor) -> int:
        """How many leading positions of a prompt the KV cache already holds."""
        cached = self.prompt
        if self.frames:
            frames = torch.nn.functional.pad(torch.stack(self.frames), (0, 1), value=-1)
            cached = torch.cat((cached, frames))
        length = min(len(cached), len(prompt))
        return int((cached[:length] == prompt[:length]).all(-1).long().cumprod(0).sum())


class Engine:
    """A model with `slots` rows of KV cache.

    A slot remembers what its cache holds: a request whose prompt begins with that prefills only the rest.
    compile: decode steps go through torch.compile, which takes minutes the first time.
    """

    def __init__(self, model: CsmModel, slots: int = 1, compile: bool = False) -> None:
        self.model = model
        self.max_seq_len = model.config.backbone.max_seq_len
        self.slots = [Slot(model.config.codebooks) for _ in range(slots)]
        self.state = DecodeState(model, slots)
        self.runner = ModelRunner(model, self.state, compile)
        self.contention = ContentionMonitor()  # of the steps of `decode_loop`
        self._shape: DecodeShape | None = None  # None: the buffers do not match the slots
        self._admissions = 0

    @property
    def busy(self) -> list[int]:
        """The slots that serve a request."""
        return [index for index, slot in enumerate(self.slots) if slot.request]

    @torch.inference_mode()
    def admit(self, request: Request) -> None:
        """Prefills a request into a free slot; one must be free.

        That is the slot whose cache already holds most of the prompt, and of equal ones the least recently used. What
        a busy slot holds more of the prompt, such as a voice that many requests begin with, is copied from there.

        Raises:
            ValueError: the prompt and its frames exceed max_seq_len.
        """
        prompt, frames = request.prompt, request.sampling.max_frames
        if len(prompt) + frames > self.max_seq_len:
            raise ValueError(f"{len(prompt)} positions and {frames} frames exceed the window of {self.max_seq_len}")
        cached = [slot.cached_prefix_len(prompt) for slot in self.slots]
        least = min(_MIN_REUSED_POSITIONS, len(prompt) - 1)
        reused = [length if length >= least else 0 for length in cached]
        free = [n for n, slot in enumerate(self.slots) if not slot.request]
        index = max(free, key=lambda n: (reused[n], -self.slots[n].admitted))
        source = max(range(len(cached)), key=lambda n: (reused[n], n == index))
        if reused[source] <= reused[index]:
            source = index
        slot, start = self.slots[index], min(cached[source], len(prompt) - 1)
        if source != index:
            self.state.backbone_cache.copy_row(source, index, start)
        slot.prompt, slot.frames = prompt[:start], []  # what the cache holds if the prefill fails
        self._admissions += 1
        slot.admitted = self._admissions
        positions = PrefillSlots(index, index + 1, start, len(prompt))
        embedded = self.model.embed_prompt(prompt[start:].to(self.model.device))[None]
        self.state.hidden[index] = self.model.backbone(embedded, self.state.backbone_cache, positions)[0, -1]
        slot.prompt, slot.request = prompt, request
        slot.uniforms = Uniforms(request.sampling.seed, self.model.config.codebooks)
        self._shape = None

    @torch.inference_mode()
    def step(self, while_waiting: Callable[[], None] = lambda: None) -> list[Frame]:
        """The next `runner.steps_per_sync` frames of every busy slot.

        while_waiting: work for the CPU while a GPU computes. A slot whose request ends becomes free and keeps its
        cache; frames decoded beyond the end are dropped.
        """
        rows = self._compact()
        slots, steps = self.slots[:rows], self.runner.steps_per_sync
        uniforms = [slot.uniforms.frame(len(slot.frames) + step) for step in range(steps) for slot in slots]
        stacked = torch.stack(uniforms).view(steps, rows, -1)  # [T, B, K]
        frames: list[Frame] = []
        for codes in self.runner.run(self._sync_buffers(rows), stacked, while_waiting):  # [B, K]
            per_slot = zip(range(rows), codes, codes.tolist(), strict=True)  # comparing ints is cheaper than tensors
            frames += [self._add_frame(n, row, values) for n, row, values in per_slot if self.slots[n].request]
        return frames

    @torch.inference_mode()
    def prepare(self, sampling: SamplingParams) -> None:
        """Captures all graphs that requests with these parameters need."""
        state = self.state
        top_k = state.sampler.set([(sampling.temperature, sampling.top_k)])
        depth_top_k = state.depth_sampler.set([(sampling.depth_temperature, sampling.depth_top_k)])
        state.positions.fill_(state.max_seq_len)  # no slot's keys are there
        self._shape = None
        sizes = {min(1 << n, len(self.slots)) for n in range(len(self.slots).bit_length() + 1)}
        for rows in sorted(sizes, reverse=True):
            self.runner.prepare(rows, top_k, depth_top_k)

    def cancel(self, request: Request) -> None:
        """Ends a request early; its slot is free and keeps its cache. The current step may hold more of its frames."""
        for slot in self.slots:
            if slot.request == request:
                slot.request, self._shape = None, None

    def release(self) -> None:
        """Frees every slot; the caches keep their contents."""
        for slot in self.slots:
            slot.request = None
        self._shape = None

    def _sync_buffers(self, rows: int) -> DecodeShape:
        """The shape of the next steps. Writes the slots' parameters to the buffers if they changed."""
        longest = max(len(self.slots[index]) for index in self.busy)
        kv_bucket = self.runner.kv_bucket(longest + self.runner.steps_per_sync)
        if self._shape is None or self._shape.rows != rows:
            slots, state = self.slots[:rows], self.state
            params = [slot.request.sampling if slot.request else IDLE_SAMPLING for slot in slots]
            top_k = state.sampler.set([(p.temperature, p.top_k) for p in params])
            depth_top_k = state.depth_sampler.set([(p.depth_temperature, p.depth_top_k) for p in params])
            state.positions[:rows] = torch.tensor([len(slot) for slot in slots]).to(state.positions)
            self._shape = DecodeShape(rows, kv_bucket, top_k, depth_top_k)
        if self._shape.kv_bucket != kv_bucket:
            self._shape = replace(self._shape, kv_bucket=kv_bucket)
        return self._shape

    def _compact(self) -> int:
        """Moves busy slots down if that makes the batch smaller; returns its rows, a power of two or all.

        What a free slot's cache holds changes places with it, since a conversation may go on from there.
        """
        busy = self.busy
        rows = min(1 << (len(busy) - 1).bit_length(), len(self.slots))
        for source in (index for index in busy if index >= rows):
            target = next(index for index in range(rows) if not self.slots[index].request)
            if len(self.slots[target]):
                length = max(len(self.slots[source]), len(self.slots[target]))
                self.state.backbone_cache.swap_rows(source, target, length)
            else:
                self.state.backbone_cache.copy_row(source, target, len(self.slots[source]))
            self.state.hidden[target] = self.state.hidden[source]
            self.slots[target], self.slots[source] = self.slots[source], self.slots[target]
            self._shape = None
        return rows

    def _add_frame(self, index: int, codes: Tensor, values: list[int]) -> Frame:
        """Adds a frame [K] to a busy slot. values: the same codes as integers."""
        slot, eos = self.slots[index], self.model.config.eos
        request = slot.request
        assert request is not None
        if values[0] == INVALID_CODE:  # cached values that are not finite would spoil what comes after them
            self.state.backbone_cache.clear_row(index)
            self.state.hidden[index] = 0
            self.slots[index], self._shape = Slot(self.model.config.codebooks), None
            return Frame(request, codes, "broken")
        slot.frames.append(codes)
        ended = all(value == eos for value in values)
        if not ended and len(slot.frames) < request.sampling.max_frames:
            return Frame(request, codes)
        slot.request, self._shape = None, None
        return Frame(request, codes, "eos" if ended else "cap")
