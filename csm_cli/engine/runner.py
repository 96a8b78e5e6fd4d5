"""Frames run: from a tape on a CPU, compiled if asked for, as CUDA graphs on CUDA."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from csm_cli.engine.cuda_graph import CudaCapture, CudaGraphRunner
from csm_cli.engine.decode_state import KV_BUCKET_STEP, DecodeShape, DecodeState, DecodeViews
from csm_cli.engine.decode_step import next_frame
from csm_cli.engine.op_replay import OpReplay
from csm_cli.errors import UsageError
from csm_cli.models.csm import CsmModel

# Frames between two looks at what came out: on CUDA a look costs the time of a few launches, and a row that has ended
# goes on for at most so many frames less one, which are dropped.
CUDA_STEPS_PER_SYNC = 4
_FIRST_EXTENT = 256


class ModelRunner:
    """Runs frames of one model over one state."""

    def __init__(self, model: CsmModel, state: DecodeState, compile: bool) -> None:
        on_cuda = model.device.type == "cuda"
        self.burst = CUDA_STEPS_PER_SYNC if on_cuda else 1
        self._few = on_cuda or compile
        self._model, self._state = model, state
        self._views: dict[DecodeShape, DecodeViews] = {}
        self._frame: OpReplay[DecodeShape] | CudaGraphRunner[DecodeShape] = OpReplay(self._body)
        if compile or model.device.type != "cpu":
            body = _compiled(model, state) if compile else self._body
            kept = (state.hidden, state.at, state.codes)
            self._frame = CudaGraphRunner(body, kept, CudaCapture(model.device) if on_cuda else None)

    @property
    def captures(self) -> int:
        return self._frame.captures

    def extent(self, positions: int) -> int:
        """How many positions are looked at where so many count.

        In steps; where each extent costs a capture or a compilation, in doublings.
        """
        step = KV_BUCKET_STEP
        if self._few:
            step = max(_FIRST_EXTENT, 1 << (positions - 1).bit_length())
        return min(-(-positions // step) * step, self._state.capacity)

    def prepare(self, rows: int, top_k: int, depth_top_k: int) -> None:
        """Captures the graphs of so many rows for every extent, the largest first."""
        extents = {self.extent(positions) for positions in range(1, self._state.last + self.burst + 1)}
        for extent in sorted(extents, reverse=True):
            self._frame.prepare(DecodeShape(rows, extent, top_k, depth_top_k))

    def run(self, shape: DecodeShape, uniforms: Tensor, meanwhile: Callable[[], None]) -> Tensor:
        """Codes [T, B, K] on the CPU of frames drawn by uniforms [T, B, K]: the device is waited for once.

        meanwhile: what is done when all frames are launched, before they are waited for.
        """
        state, rows = self._state, shape.rows
        given = uniforms.to(state.uniforms.device, non_blocking=True)
        codes = torch.empty(given.shape, dtype=state.codes.dtype, device=given.device)
        for each, kept in zip(given, codes, strict=True):
            state.uniforms[:rows] = each
            self._frame(shape)
            kept.copy_(state.codes[:rows])
        meanwhile()
        return codes.cpu()

    def _body(self, shape: DecodeShape) -> None:
        if shape not in self._views:
            self._views[shape] = self._state.views(self._model, shape)
        next_frame(self._model, self._state, self._views[shape])


def _compiled(model: CsmModel, state: DecodeState) -> Callable[[DecodeShape], None]:
    """The frame through torch.compile, once for each shape; its views are taken within, since a compiler slices freely.

    Guards would cost as much as the frame's kernels; the model and the state never change, so only shapes are told
    apart. On a CPU kernels are called from C++: from Python a frame of the bundled voice takes 2.5 ms, so 1.8, on two
    threads. Tried and left, no faster: products of one row as sums that inductor fuses, and attention without SDPA.

    Raises:
        UsageError: no C++ compiler, which compiling for a CPU needs, or PyTorch is where that cannot find it.
    """
    if model.device.type == "cpu":
        _check_compiler()

    def frame(rows: int, extent: int, top_k: int, depth_top_k: int) -> None:
        next_frame(model, state, state.views(model, DecodeShape(rows, extent, top_k, depth_top_k)))

    options: dict[str, Any] = {
        "cpp_wrapper": model.device.type == "cpu",
        "guard_filter_fn": lambda guards: [guard.name.startswith("L[") for guard in guards],
    }
    compiled = torch.compile(frame, dynamic=False, options=options)
    return lambda shape: compiled(shape.rows, shape.extent, shape.top_k, shape.depth_top_k)


def _check_compiler() -> None:
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--compile needs a C++ compiler; install g++ or leave --compile out")
    if " " in torch.__path__[0]:
        where = torch.__path__[0]
        raise UsageError(
            f"--compile: torch lies in {where}, and cannot link to a path with spaces; leave --compile out"
        )
