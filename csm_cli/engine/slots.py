"""Slots: the rows of a batch, each with its own prompt, length and random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from csm_cli.engine.frame import BROKEN, Caches, Draw, next_frame
from csm_cli.engine.request import Frame, Request
from csm_cli.engine.sampling import Filter, Sampling, Uniforms
from csm_cli.model import CsmModel, Scatter, Span

EXTENT_STEP = 128
IDLE = Sampling(temperature=0, top_k=1, depth_temperature=0, depth_top_k=1, seed=0, max_frames=0)


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
    def sampling(self) -> Sampling:
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
    """

    def __init__(self, model: CsmModel, slots: int = 1) -> None:
        self.model = model
        self.positions = model.config.backbone.positions
        self.slots = [Slot(model.config.codebooks) for _ in range(slots)]
        # One position more than the window: idle rows of a full cache write there.
        self._caches = Caches(model, slots, self.positions + 1)
        self._hidden = torch.zeros(slots, model.config.backbone.hidden, dtype=model.dtype, device=model.device)
        self._filters: tuple[Filter, Filter] | None = None

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
        place = Span(index, index + 1, start, len(rows))
        embedded = self.model.embed_rows(rows[start:].to(self.model.device))[None]
        self._hidden[index] = self.model.backbone(embedded, self._caches.backbone, place)[0, -1]
        slot.begin(request)
        self._filters = None

    @torch.inference_mode()
    def step(self) -> list[Frame]:
        """One frame for every busy slot; a slot whose request ends with it becomes free, its cache kept."""
        count = self._gather()
        slots = self.slots[:count]
        place = self.model.backbone.place(self._caches.backbone, self._where(slots))
        codes, hidden = next_frame(self.model, self._caches, self._hidden[:count], place, self._draw(slots))
        self._hidden[:count] = hidden
        return [self._record(index, row) for index, row in enumerate(codes.cpu()) if self.slots[index].request]

    def cancel(self, request: Request) -> None:
        """Ends a request before it ends itself; its slot is free, its cache kept."""
        for slot in self.slots:
            if slot.request is request:
                slot.request = None
        self._filters = None

    def release(self) -> None:
        """Frees every slot; what the caches hold stays."""
        for slot in self.slots:
            slot.request = None
        self._filters = None

    def _where(self, slots: list[Slot]) -> Span | Scatter:
        """The position after each slot's last; a row alone needs no mask."""
        lengths = [len(slot) for slot in slots]
        if len(slots) == 1:
            return Span(0, 1, lengths[0], lengths[0] + 1)
        longest = max(lengths[index] for index in self.busy) + 1
        extent = min(-(-longest // EXTENT_STEP) * EXTENT_STEP, self.positions + 1)
        return Scatter(torch.tensor(lengths, device=self.model.device), extent)

    def _gather(self) -> int:
        """Moves busy slots down where that makes the batch smaller; returns its size, a power of two of rows."""
        busy = self.busy
        count = min(1 << (len(busy) - 1).bit_length(), len(self.slots))
        for source in (index for index in busy if index >= count):
            target = next(index for index in range(count) if not self.slots[index].request)
            self._caches.backbone.copy_row(source, target, len(self.slots[source]))
            self._hidden[target] = self._hidden[source]
            self.slots[target], self.slots[source] = self.slots[source], Slot(self.model.config.codebooks)
            self._filters = None
        return count

    def _draw(self, slots: list[Slot]) -> Draw:
        device, codes = self.model.device, self.model.config.codes
        if self._filters is None or len(self._filters[0].temperature) != len(slots):
            samplings = [slot.sampling for slot in slots]
            self._filters = (
                Filter.of([(s.temperature, s.top_k) for s in samplings], codes, device),
                Filter.of([(s.depth_temperature, s.depth_top_k) for s in samplings], codes, device),
            )
        return Draw(*self._filters, torch.stack([slot.uniforms.frame(len(slot.frames)) for slot in slots]).to(device))

    def _drop(self, index: int) -> None:
        """Frees a slot and forgets its cache, whose numbers would spoil what comes after them."""
        self._caches.backbone.clear_row(index)
        self._hidden[index] = 0
        self.slots[index] = Slot(self.model.config.codebooks)
        self._filters = None

    def _record(self, index: int, codes: Tensor) -> Frame:
        slot, eos = self.slots[index], self.model.config.eos
        request = slot.request
        assert request is not None
        if codes[0] == BROKEN:
            self._drop(index)
            return Frame(request, codes, "broken")
        slot.frames.append(codes)
        ended, capped = bool((codes == eos).all()), len(slot.frames) >= request.sampling.max_frames
        if not (ended or capped):
            return Frame(request, codes)
        slot.request, self._filters = None, None
        return Frame(request, codes, "eos" if ended else "cap")
