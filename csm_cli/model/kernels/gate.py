"""SiLU of the gates times what they let through, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _gate(gate_up, out, width, block: tl.constexpr) -> None:
    row = tl.program_id(0)
    at = tl.program_id(1) * block + tl.arange(0, block)
    kept = at < width
    gates = tl.load(gate_up + row * 2 * width + at, kept, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + at, kept, other=0.0).to(tl.float32)
    wide = gates.to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(gates.dtype).to(tl.float32)  # rounded where PyTorch rounds
    tl.store(out + row * width + at, (opened * up).to(gates.dtype), kept)


def gate(gate_up: Tensor) -> Tensor:
    """As `plain.gate`."""
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    _gate[(rows, triton.cdiv(width, _BLOCK))](gate_up, out, width, _BLOCK)
    return out
