"""Slots: the rows of a batch, each with its own prompt, length and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from csm_cli.engine.contention import ContentionMonitor
from csm_cli.engine.decode_state import DecodeShape, DecodeState
from csm_cli.engine.decode_step import BROKEN
from csm_cli.engine.requests import Frame, Request
from csm_cli.engine.runner import ModelRunner
from csm_cli.engine.sampler import SamplingParams, Uniforms
from csm_cli.models.csm import CsmModel, PrefillSlots

IDLE = SamplingParams(temperature=0, top_k=1, depth_temperature=0, depth_top_k=1, seed=0, max_frames=0)


class Slot:
    """One row of the caches: the prompt and frames its KV cache holds, and the request it works on."""

    def __init__(self, codebooks: int) -> None:
        self.prompt = torch.empty(0, codebooks + 1, dtype=torch.int64)
        self.frames: list[Tensor] = []
        self.request: Request | None = None
        self.uniforms = Uniforms(0, codebooks)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.frames)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling if self.request else IDLE

    def shared(self, rows: Tensor) -> int:
        """How many leading rows of a prompt the KV cache already holds."""
        held = self.prompt
        if self.frames:
            frames = torch.nn.functional.pad(torch.stack(self.frames), (0, 1), value=-1)
            held = torch.cat((held, frames))
        length = min(len(held), len(rows))
        return int((held[:length] == rows[:length]).all(-1).long().cumprod(0).sum())

    def begin(self, request: Request) -> None:
        self.prompt, self.frames, self.request = request.rows, [], request
        self.uniforms = Uniforms(request.sampling.seed, request.rows.shape[1] - 1)


class Engine:
    """A model with `slots` rows of KV cache.

    A slot remembers what its cache holds: a request whose prompt begins with that prefills only what is new.
    compile: frames go through torch.compile, which takes minutes the first time.
    """

    def __init__(self, model: CsmModel, slots: int = 1, compile: bool = False) -> None:
        self.model = model
        self.positions = model.config.backbone.positions
        self.slots = [Slot(model.config.codebooks) for _ in range(slots)]
        self.state = DecodeState(model, slots)
        self.runner = ModelRunner(model, self.state, compile)
        self.pace = ContentionMonitor()  # of the steps in `loop.steps`
        self._shape: DecodeShape | None = None  # None: buffers do not say what the slots say

    @property
    def busy(self) -> list[int]:
        return [index for index, slot in enumerate(self.slots) if slot.request]

    @property
    def full(self) -> bool:
        return len(self.busy) == len(self.slots)

    @torch.inference_mode()
    def admit(self, request: Request) -> None:
        """Prefills a request into the free slot whose cache already holds most of it. One must be free.

        Raises:
            ValueError: the prompt and its frames exceed the window.
        """
        rows, frames = request.rows, request.sampling.max_frames
        if len(rows) + frames > self.positions:
            raise ValueError(f"{len(rows)} rows and {frames} frames exceed the window of {self.positions}")
        shared = {index: slot.shared(rows) for index, slot in enumerate(self.slots) if not slot.request}
        index = max(shared, key=lambda free: shared[free])
        slot, start = self.slots[index], min(shared[index], len(rows) - 1)
        slot.prompt, slot.frames = rows[:start], []  # what is left of it if the prefill fails
        place = PrefillSlots(index, index + 1, start, len(rows))
        embedded = self.model.embed_rows(rows[start:].to(self.model.device))[None]
        self.state.hidden[index] = self.model.backbone(embedded, self.state.backbone, place)[0, -1]
        slot.begin(request)
        self._shape = None

    @torch.inference_mode()
    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Frame]:
        """The next frames of every busy slot, one on a CPU, a few on CUDA, where waiting for each would cost.

        meanwhile: what the host does while a GPU works on them, none of which they wait for.
        A slot whose request ends becomes free, its cache kept; what was decoded beyond the end is dropped.
        """
        rows = self._gather()
        slots = self.slots[:rows]
        burst = self.runner.burst
        drawn = [slot.uniforms.frame(len(slot.frames) + turn) for turn in range(burst) for slot in slots]
        uniforms = torch.stack(drawn).view(burst, rows, -1)  # [T, B, K]
        frames: list[Frame] = []
        for codes in self.runner.run(self._ready(rows), uniforms, meanwhile):  # [B, K]
            told = zip(slots, codes, codes.tolist(), strict=True)  # numbers cost less to look at than tensors
            frames += [self._record(slot, row, numbers) for slot, row, numbers in told if slot.request]
        return frames

    @torch.inference_mode()
    def prepare(self, sampling: SamplingParams) -> None:
        """Captures what requests sampled like this will need, so that nothing is left to do when they come."""
        state = self.state
        top_k = state.filter.set([(sampling.temperature, sampling.top_k)])
        depth_top_k = state.depth_filter.set([(sampling.depth_temperature, sampling.depth_top_k)])
        state.at.fill_(state.last)  # where nobody's keys are
        self._shape = None
        sizes = {min(1 << n, len(self.slots)) for n in range(len(self.slots).bit_length() + 1)}
        for rows in sorted(sizes, reverse=True):
            self.runner.prepare(rows, top_k, depth_top_k)

    def cancel(self, request: Request) -> None:
        """Ends a request before it ends itself; its slot is free, its cache kept. This step may hold more of it."""
        for slot in self.slots:
            if slot.request is request:
                slot.request, self._shape = None, None

    def release(self) -> None:
        """Frees every slot; what the caches hold stays."""
        for slot in self.slots:
            slot.request = None
        self._shape = None

    def _ready(self, rows: int) -> DecodeShape:
        """The shape of the next frames of the first rows, after the buffers were told of them if they had to be."""
        longest = max(len(self.slots[index]) for index in self.busy)
        extent = self.runner.extent(longest + self.runner.burst)
        if self._shape is None or self._shape.rows != rows:
            slots, state = self.slots[:rows], self.state
            samplings = [slot.sampling for slot in slots]
            top_k = state.filter.set([(s.temperature, s.top_k) for s in samplings])
            depth_top_k = state.depth_filter.set([(s.depth_temperature, s.depth_top_k) for s in samplings])
            state.at[:rows] = torch.tensor([len(slot) for slot in slots]).to(state.at)
            self._shape = DecodeShape(rows, extent, top_k, depth_top_k)
        if self._shape.extent != extent:
            self._shape = replace(self._shape, extent=extent)
        return self._shape

    def _gather(self) -> int:
        """Moves busy slots down where that makes the batch smaller; returns its size, a power of two of rows."""
        busy = self.busy
        count = min(1 << (len(busy) - 1).bit_length(), len(self.slots))
        for source in (index for index in busy if index >= count):
            target = next(index for index in range(count) if not self.slots[index].request)
            self.state.backbone.copy_row(source, target, len(self.slots[source]))
            self.state.hidden[target] = self.state.hidden[source]
            self.slots[target], self.slots[source] = self.slots[source], Slot(self.model.config.codebooks)
            self._shape = None
        return count

    def _drop(self, slot: Slot) -> None:
        """Frees a slot and forgets its cache, whose numbers would spoil what comes after them."""
        index = self.slots.index(slot)
        self.state.backbone.clear_row(index)
        self.state.hidden[index] = 0
        slot.request = None
        self.slots[index], self._shape = Slot(self.model.config.codebooks), None

    def _record(self, slot: Slot, codes: Tensor, numbers: list[int]) -> Frame:
        """codes: [K]; numbers: the same."""
        request, eos = slot.request, self.model.config.eos
        assert request is not None
        if numbers[0] == BROKEN:
            self._drop(slot)
            return Frame(request, codes, "broken")
        slot.frames.append(codes)
        ended, capped = all(number == eos for number in numbers), len(slot.frames) >= request.sampling.max_frames
        if not (ended or capped):
            return Frame(request, codes)
        slot.request, self._shape = None, None
        return Frame(request, codes, "eos" if ended else "cap")
