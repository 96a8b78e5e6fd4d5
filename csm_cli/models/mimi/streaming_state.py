"""What the layers of a codec carry from chunk to chunk.

It lies under the layer itself, row by row, so a run is one memory, dropped when the run is over, and runs can be
joined. A run that begins has an empty memory; beside others that go on, one of zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

StreamingState = dict[nn.Module, tuple[Tensor, ...]]
StateLayout = list[tuple[nn.Module, list[torch.Size]]]


def pack(memory: StreamingState) -> tuple[Tensor, StateLayout]:
    """A memory of B rows as one tensor [B, M], and which layer's parts stand in a row, in which shapes.

    Rows of any runs are then joined by one copy, where hundreds of small ones would take longer than the decoding.
    """
    layout = [(layer, [part.shape[1:] for part in parts]) for layer, parts in memory.items()]
    return torch.cat([part.flatten(1) for parts in memory.values() for part in parts], dim=1), layout


def unpack(rows: Tensor, layout: StateLayout) -> StreamingState:
    """The memory whose rows [B, M] `pack` gave."""
    sizes = [shape.numel() for _, shapes in layout for shape in shapes]
    parts = iter(torch.split(rows, sizes, dim=1))
    return {layer: tuple(next(parts).view(len(rows), *shape) for shape in shapes) for layer, shapes in layout}
