"""What a CUDA graph does, on a CPU: the operators of one call are written down and run again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What waits for the device, has a shape that depends on numbers, or brings numbers from the host.
FORBIDDEN = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "lift_fresh")


class Tape(TorchDispatchMode):
    """Writes down every operator, its arguments and what came out; refuses what a graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in FORBIDDEN or (name == "index" and any(t.dtype == torch.bool for t in tensors(args[1]))):
            raise AssertionError(f"a frame calls {name}, which no graph can hold")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recorder:
    """Stands in for `CudaCapture`. Each replay begins with every intermediate result spoilt."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        work()
        tape = Tape()
        with tape:
            work()
        return lambda: replay(tape)


@torch.inference_mode()
def replay(tape: Tape) -> None:
    """Runs the same operators over the same memory. Fresh results are written where the first run's lay."""
    fresh = [(call, tensors(call[3]) if is_fresh(call) else []) for call in tape.calls]
    for _, outs in fresh:
        for out in outs:
            out.fill_(float("nan") if out.is_floating_point() or out.is_complex() else 1)
    for (func, args, kwargs, out), outs in fresh:
        again = func(*args, **kwargs)
        for old, new in zip(outs, tensors(again), strict=False):
            assert old.shape == new.shape, f"{func} gave {new.shape} after {old.shape}"
            old.copy_(new)
        if not outs:
            same = zip(tensors(out), tensors(again), strict=True)
            assert all(old.data_ptr() == new.data_ptr() for old, new in same), f"{func} moved"


def is_fresh(call: tuple[Any, tuple[Any, ...], dict[str, Any], Any]) -> bool:
    """Whether what came out is memory of its own."""
    _, args, kwargs, out = call
    given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
    return all(t.untyped_storage().data_ptr() not in given for t in tensors(out)) and bool(tensors(out))
