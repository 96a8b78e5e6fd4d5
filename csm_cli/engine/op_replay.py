"""A function over static buffers, played from a tape: its operators alone, without the Python and the views between."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LARGEST = 256 << 20  # bytes that a tape may hold

RecordedOp = Callable[[], object]
ReplayKey = TypeVar("ReplayKey", bound=Hashable)


class OpReplay(Generic[ReplayKey]):
    """`fn(key)`, written down at the second call in a row for a key and played from then on.

    The first is fn's own, which may make what it keeps. fn reads and writes only buffers that never move, and branches
    on no number it computes: the same that `CudaGraphRunner` asks for. Only the last key's recording is kept, as it
    holds the result of every operator; writing one takes as long as three or four calls. Where results are large
    nothing is recorded: 16 rows of csm-1b would hold 0.7 GB, and take as long either way.

    On a CPU most operators of a small frame take no longer than Python takes to reach them: on the bundled voice 436
    of 673 are left, without the views, and a frame takes 0.72 of its time (two threads). torch.jit.trace: 0.67, but
    deprecated. Tried and left: operators by their overloads in torch.ops, 0.89; results that share memory, no faster.
    """

    def __init__(self, fn: Callable[[ReplayKey], None]) -> None:
        self._fn = fn
        self._key: ReplayKey | None = None
        self._calls: list[RecordedOp] = []
        self.captures = 0

    def __call__(self, key: ReplayKey) -> None:
        if key != self._key:
            self._key, self._calls = key, []
            self._fn(key)
        elif not self._calls:
            with _Tape() as tape:
                self._fn(key)
            self._calls = tape.calls or [partial(self._fn, key)]
            self.captures += 1
        else:
            for call in self._calls:
                call()

    def prepare(self, key: ReplayKey) -> None:
        """Nothing: writing a tape is part of decoding a frame."""


class _Tape(TorchFunctionMode):
    """Runs what is called and keeps what must be called again.

    That is what writes to given memory, and what has a result in memory of its own, which is computed into that from
    then on. Views, numbers and shapes stay what they were. There are no calls if it came to hold too much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RecordedOp] = []
        self._held = 0  # bytes
        self._without: set[Callable[..., Any]] = set()  # functions that take no `out`

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = partial(func, *args, **(kwargs or {}))
        result = call()
        made = _tensors(result)
        if self._held <= _LARGEST and (made or result is None):
            self._keep(call, result, made)
        return result

    def _keep(self, call: partial[Any], result: Any, made: Sequence[Tensor]) -> None:
        given = _tensors((call.args, call.keywords))
        if result is None or any(one is other for one in made for other in given):
            self.calls.append(call)
        elif not {_memory(tensor) for tensor in given}.issuperset(map(_memory, made)):
            self.calls.append(self._into(result, call))
            self._held += sum(tensor.nbytes for tensor in made)
        if self._held > _LARGEST:
            self.calls.clear()

    def _into(self, result: Any, call: partial[Any]) -> RecordedOp:
        """The same call, with its result written over the first."""
        for func in (call.func, getattr(torch, call.func.__name__, None)):  # most methods are functions too
            if callable(func) and func not in self._without:
                again = partial(func, *call.args, **call.keywords, out=result)
                try:
                    again()
                except TypeError:
                    self._without.add(func)
                else:
                    return again
        write = result.copy_
        return lambda: write(call())


def _tensors(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return _tensors(list(tree.values()))
    return [tensor for each in tree for tensor in _tensors(each)] if isinstance(tree, (tuple, list)) else []


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
