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

from csm_cli.model.kernels import plain
from csm_cli.model.kernels.plain import Draw, Gate, Join, Product, Turn


@dataclass(frozen=True)
class Kernels:
    """What each does, `plain` says."""

    join: Join = plain.join
    turn: Turn = plain.turn
    gate: Gate = plain.gate
    draw: Draw = plain.draw
    product: Product = plain.product


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on CUDA where it is installed; PyTorch's elsewhere, and within torch.compile, which makes its own."""
    if device.type != "cuda" or not has_triton():
        return Kernels()
    return _eagerly(fused())


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and a C compiler with it, which it needs to launch kernels."""
    compilers = (os.environ.get("CC", "gcc"), "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def fused() -> Kernels:
    """Triton's, which is imported here."""
    from csm_cli.model.kernels.draw import draw
    from csm_cli.model.kernels.gate import gate
    from csm_cli.model.kernels.join import join
    from csm_cli.model.kernels.turn import turn
    from csm_cli.model.kernels.weights import product

    return Kernels(join, turn, gate, draw, product)


def _eagerly(kernels: Kernels) -> Kernels:
    """The same; PyTorch's where a compiler is looking."""

    def either(kernel: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (twin if torch.compiler.is_compiling() else kernel)(*given)

    twins = Kernels()
    return Kernels(*(either(getattr(kernels, each.name), getattr(twins, each.name)) for each in fields(Kernels)))
