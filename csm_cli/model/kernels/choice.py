"""Where Triton's kernels are used is decided here and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from csm_cli.model.kernels import plain
from csm_cli.model.kernels.plain import Attend, Draw, Onto, Read, Turn


@dataclass(frozen=True)
class Kernels:
    """What each does, `plain` says."""

    read: Read = plain.read
    turn: Turn = plain.turn
    attend: Attend = plain.attend
    onto: Onto = plain.onto
    gate: Read = plain.gate
    draw: Draw = plain.draw


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on CUDA where it is installed; PyTorch's elsewhere, and within torch.compile, which makes its own."""
    if device.type != "cuda" or not has_triton():
        return Kernels()
    return fused()


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and a C compiler with it, which it needs to launch kernels."""
    compilers = (os.environ.get("CC", "gcc"), "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def fused() -> Kernels:
    """Triton's, which is imported here."""
    from csm_cli.model.kernels.attend import attend
    from csm_cli.model.kernels.draw import draw
    from csm_cli.model.kernels.gate import gate
    from csm_cli.model.kernels.put import onto, read
    from csm_cli.model.kernels.sums import MOST_ROWS
    from csm_cli.model.kernels.turn import turn

    return _where_they_pay(Kernels(read, turn, attend, onto, gate, draw), MOST_ROWS)


def _where_they_pay(kernels: Kernels, most: int) -> Kernels:
    """The same; PyTorch's where a compiler is looking, and for more rows than a frame has: a prefill's."""

    def either(kernel: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(x: Tensor, *given: Any) -> Any:
            return (twin if len(x) > most or torch.compiler.is_compiling() else kernel)(x, *given)

        return chosen

    twins = Kernels()
    return Kernels(*(either(getattr(kernels, each.name), getattr(twins, each.name)) for each in fields(Kernels)))
