"""Functions over static buffers, called once and then replayed: as a CUDA graph, or as their recorded operators."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_WARM_UP_RUNS = 2
_MAX_BYTES = 256 << 20  # of results that a recording of operators may hold

Replay = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


class CudaCapture:
    """Captures graphs into one memory pool, which they can share because no two run at the same time."""

    def __init__(self, device: torch.device) -> None:
        # A higher priority than the codec's own stream.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, fn: Callable[[], None]) -> Replay:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_RUNS):  # cuBLAS and Triton initialize, which cannot be captured
                fn()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            fn()
        return graph.replay


class CudaGraphRunner(Generic[Key]):
    """`fn(key)`, captured once for each key and then replayed.

    fn must read and write only buffers that never move, synchronize nothing and branch on no computed value.
    preserved: buffers whose contents are restored after a capture, which runs fn a few times. Without `capture` fn is
    just called.
    """

    def __init__(
        self,
        fn: Callable[[Key], None],
        preserved: Sequence[Tensor],
        capture: Callable[[Callable[[], None]], Replay] | None,
    ) -> None:
        self._fn, self._preserved, self._capture = fn, preserved, capture
        self._replays: dict[Key, Replay] = {}

    @property
    def captures(self) -> int:
        return len(self._replays)

    def __call__(self, key: Key) -> None:
        if self._capture is None:
            self._fn(key)
            return
        if key not in self._replays:
            self.prepare(key)
        self._replays[key]()

    def prepare(self, key: Key) -> None:
        """Captures now. Largest keys first: smaller ones reuse their memory."""
        if self._capture is None or key in self._replays:
            return
        saved = [buffer.clone() for buffer in self._preserved]
        self._replays[key] = self._capture(lambda: self._fn(key))
        for buffer, value in zip(self._preserved, saved, strict=True):
            buffer.copy_(value)


class OpReplay(Generic[Key]):
    """`fn(key)`, recorded at the second call in a row for a key and then replayed.

    On a CPU most operators of a small model take no longer than Python takes to reach them. The first call is a plain
    one, in which fn may create what it caches. fn must read and write only buffers that never move and branch on no
    computed value, as for `CudaGraphRunner`. Only the last key's recording is kept, since it holds the result of every
    operator. A function whose results are too large is not recorded.
    """

    def __init__(self, fn: Callable[[Key], None]) -> None:
        self._fn = fn
        self._key: Key | None = None
        self.ops: list[Replay] = []
        self.captures = 0

    def __call__(self, key: Key) -> None:
        if key != self._key:
            self._key, self.ops = key, []
            self._fn(key)
        elif not self.ops:
            with _OpRecorder() as recorder:
                self._fn(key)
            self.ops = recorder.ops or [partial(self._fn, key)]
            self.captures += 1
        else:
            for op in self.ops:
                op()

    def prepare(self, key: Key) -> None:
        """Does nothing: recording is part of decoding."""


class _OpRecorder(TorchFunctionMode):
    """Runs operators and records those that must be called again.

    These are operators that write to existing memory, and operators whose result has memory of its own, into which
    they are computed from then on. Views, numbers and shapes stay as they were. `ops` is empty if the results exceed
    _MAX_BYTES.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Replay] = []
        self._bytes = 0
        self._without_out: set[Callable[..., Any]] = set()  # functions without an `out` parameter

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = partial(func, *args, **(kwargs or {}))
        result = call()
        outputs = _tensors(result)
        if self._bytes <= _MAX_BYTES and (outputs or result is None):
            self._record(call, result, outputs)
        return result

    def _record(self, call: partial[Any], result: Any, outputs: Sequence[Tensor]) -> None:
        inputs = _tensors((call.args, call.keywords))
        if result is None or any(output is each for output in outputs for each in inputs):
            self.ops.append(call)
        elif not {_address(each) for each in inputs}.issuperset(map(_address, outputs)):
            self.ops.append(self._into(result, call))
            self._bytes += sum(tensor.nbytes for tensor in outputs)
        if self._bytes > _MAX_BYTES:
            self.ops.clear()

    def _into(self, result: Any, call: partial[Any]) -> Replay:
        """The same call, writing over the first result."""
        for func in (call.func, getattr(torch, call.func.__name__, None)):  # most methods are functions too
            if callable(func) and func not in self._without_out:
                op = partial(func, *call.args, **call.keywords, out=result)
                try:
                    op()
                except TypeError:
                    self._without_out.add(func)
                else:
                    return op
        writes = [output.copy_ for output in _tensors(result)]

        def copy_results() -> None:
            for write, output in zip(writes, _tensors(call()), strict=True):
                write(output)

        return copy_results


def _tensors(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return _tensors(list(tree.values()))
    return [tensor for each in tree for tensor in _tensors(each)] if isinstance(tree, (tuple, list)) else []


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
