"""A function over static buffers, replayed as a CUDA graph: one launch instead of thousands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

_WARM_UP = 2

GraphReplay = Callable[[], object]
GraphKey = TypeVar("GraphKey", bound=Hashable)


class CudaCapture:
    """Captures into one pool of memory, which graphs share because none runs beside another."""

    def __init__(self, device: torch.device) -> None:
        # What is captured goes before the codec's work, which has a stream of its own.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> GraphReplay:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):  # cuBLAS and Triton set themselves up, which no graph may hold
                work()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph.replay


class CudaGraphRunner(Generic[GraphKey]):
    """`fn(key)`, captured once for each key and replayed from then on.

    fn reads and writes only buffers that never move, waits for nothing and branches on no number it computes. kept: the
    buffers that capturing, which runs it a few times, must leave as they were. Without `capture` it is just called.
    """

    def __init__(
        self,
        fn: Callable[[GraphKey], None],
        kept: Sequence[Tensor],
        capture: Callable[[Callable[[], None]], GraphReplay] | None,
    ) -> None:
        self._fn, self._kept, self._capture = fn, kept, capture
        self._replays: dict[GraphKey, GraphReplay] = {}

    @property
    def captures(self) -> int:
        return len(self._replays)

    def __call__(self, key: GraphKey) -> None:
        if self._capture is None:
            self._fn(key)
            return
        if key not in self._replays:
            self.prepare(key)
        self._replays[key]()

    def prepare(self, key: GraphKey) -> None:
        """Captures now. Largest keys first: what they allocate serves the smaller ones too."""
        if self._capture is None or key in self._replays:
            return
        saved = [buffer.clone() for buffer in self._kept]
        self._replays[key] = self._capture(lambda: self._fn(key))
        for buffer, value in zip(self._kept, saved, strict=True):
            buffer.copy_(value)
