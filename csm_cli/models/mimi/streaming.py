"""Work begun now and awaited later: on a CUDA stream of its own, or done at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Samples = NDArray[np.float32]
StreamStart = Callable[[Callable[[], Tensor]], Callable[[], Samples]]


class StreamingConv:
    """A CUDA stream of its own for work whose result is awaited on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which loads the weights

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Samples]:
        """Begins the work; what it makes is used on this stream alone, so that its memory is not taken too soon."""
        with torch.cuda.stream(self._stream):
            samples = work()
            here = torch.empty(samples.shape, dtype=samples.dtype, pin_memory=True)
            here.copy_(samples, non_blocking=True)
            done = self._stream.record_event()

        def wait() -> Samples:
            done.synchronize()
            return here.numpy()

        return wait


def finished(work: Callable[[], Tensor]) -> Callable[[], Samples]:
    """Does the work now."""
    samples: Samples = work().cpu().numpy()
    return lambda: samples
