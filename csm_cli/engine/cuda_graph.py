"""A function over static buffers, replayed as a CUDA graph: one launch instead of thousands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

_WARM_UP_RUNS = 2

GraphReplay = Callable[[], object]
GraphKey = TypeVar("GraphKey", bound=Hashable)


class CudaCapture:
    """Captures graphs into one memory pool, which they can share because no two run at the same time."""

    def __init__(self, device: torch.device) -> None:
        # A higher priority than the codec's own stream.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, fn: Callable[[], None]) -> GraphReplay:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):  # cuBLAS and Triton initialize, which cannot be captured
                fn()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            fn()
        return graph.replay


class CudaGraphRunner(Generic[GraphKey]):
    """`fn(key)`, captured once for each key and then replayed.

    fn must read and write only buffers that never move, synchronize nothing and branch on no computed value.
    preserved: buffers whose contents are restored after a capture, which runs fn a few times. Without `capture` fn is
    just called.
    """

    def __init__(
        self,
        fn: Callable[[GraphKey], None],
        preserved: Sequence[Tensor],
        capture: Callable[[Callable[[], None]], GraphReplay] | None,
    ) -> None:
        self._fn, self._preserved, self._capture = fn, preserved, capture
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
        """Captures now. Largest keys first: smaller ones reuse their memory."""
        if self._capture is None or key in self._replays:
            return
        saved = [buffer.clone() for buffer in self._preserved]
        self._replays[key] = self._capture(lambda: self._fn(key))
        for buffer, value in zip(self._preserved, saved, strict=True):
            buffer.copy_(value)
