"""Runs decode steps: op replay on a CPU, torch.compile, or CUDA graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from csm_cli.engine.decode_step import KV_BUCKET_STEP, DecodeShape, DecodeState, DecodeViews, decode_step
from csm_cli.engine.replay import CudaCapture, CudaGraphRunner, OpReplay
from csm_cli.errors import UsageError
from csm_cli.models.csm.model import CsmModel

# On CUDA each synchronization costs the time of a few launches. A row that has ended runs on for at most this many
# steps less one, which are dropped.
CUDA_STEPS_PER_SYNC = 4
_MIN_COARSE_BUCKET = 256
# PyTorch's attention on a CPU sums over 512 keys at a time; where more than three heads share keys, in an order that
# depends on how many there are. In buckets of whole blocks a row does not depend on the longest one beside it.
_CPU_ATTENTION_BLOCK, _MAX_HEADS_IN_ORDER = 512, 3


class ModelRunner:
    """Runs decode steps of one model over one state.

    Raises:
        UsageError: `compile` on a CPU without a usable C++ compiler.
    """

    def __init__(self, model: CsmModel, state: DecodeState, compile: bool) -> None:
        on_cuda = model.device.type == "cuda"
        self.steps_per_sync = CUDA_STEPS_PER_SYNC if on_cuda else 1
        self.coarse_buckets = on_cuda or compile  # each bucket costs a capture or a compilation
        heads_per_key = model.config.backbone.heads // model.config.backbone.kv_heads
        in_blocks = model.device.type == "cpu" and heads_per_key > _MAX_HEADS_IN_ORDER
        self._min_bucket = _CPU_ATTENTION_BLOCK if in_blocks else KV_BUCKET_STEP
        self._model, self._state = model, state
        self._views: dict[DecodeShape, DecodeViews] = {}
        self.step: OpReplay[DecodeShape] | CudaGraphRunner[DecodeShape] = OpReplay(self.eager_step)
        if compile or model.device.type != "cpu":
            step = _compiled_step(model, state) if compile else self.eager_step
            preserved = (state.hidden, state.positions, state.codes)
            self.step = CudaGraphRunner(step, preserved, CudaCapture(model.device) if on_cuda else None)

    @property
    def captures(self) -> int:
        return self.step.captures

    def kv_bucket(self, length: int) -> int:
        """How many cache positions are attended to for `length` of them: rounded up, in steps or in doublings."""
        bucket = self._min_bucket
        if self.coarse_buckets:
            bucket = max(_MIN_COARSE_BUCKET, bucket, 1 << (length - 1).bit_length())
        return min(-(-length // bucket) * bucket, self._state.kv_capacity)

    def prepare(self, rows: int, top_k: int, depth_top_k: int) -> None:
        """Captures what steps of so many rows sampled like this will need, largest first."""
        longest = self._state.max_seq_len + self.steps_per_sync
        buckets = {self.kv_bucket(length) for length in range(1, longest + 1)}
        for bucket in sorted(buckets, reverse=True):
            self.step.prepare(DecodeShape(rows, bucket, top_k, depth_top_k))

    def run(self, shape: DecodeShape, uniforms: Tensor, while_waiting: Callable[[], None]) -> Tensor:
        """Codes [T, B, K] on the CPU of T steps with uniforms [T, B, K]; synchronizes with the device once.

        while_waiting: called when all steps are launched, before the synchronization.
        """
        state, rows = self._state, shape.rows
        on_device = uniforms.to(state.uniforms.device, non_blocking=True)
        codes = torch.empty(on_device.shape, dtype=state.codes.dtype, device=on_device.device)
        for step_uniforms, step_codes in zip(on_device, codes, strict=True):
            state.uniforms[:rows] = step_uniforms
            self.step(shape)
            step_codes.copy_(state.codes[:rows])
        while_waiting()
        return codes.cpu()

    def eager_step(self, shape: DecodeShape) -> None:
        if shape not in self._views:
            self._views[shape] = self._state.views(self._model, shape)
        decode_step(self._model, self._state, self._views[shape])


def _compiled_step(model: CsmModel, state: DecodeState) -> Callable[[DecodeShape], None]:
    """The decode step through torch.compile, once for each shape. Views are taken inside: a compiler slices for free.

    Guards on the model and the state, which never change, would cost as much as the step's kernels, so only guards on
    the shape are kept. On a CPU the C++ wrapper calls the kernels, which is faster than Python.
    """
    on_cpu = model.device.type == "cpu"
    if on_cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--compile needs a C++ compiler; install g++ or omit --compile")
    if on_cpu and " " in torch.__path__[0]:
        raise UsageError(f"--compile: the linker rejects {torch.__path__[0]}, a path with spaces; omit --compile")

    def step(rows: int, kv_bucket: int, top_k: int, depth_top_k: int) -> None:
        decode_step(model, state, state.views(model, DecodeShape(rows, kv_bucket, top_k, depth_top_k)))

    options: dict[str, Any] = {
        "cpp_wrapper": on_cpu,
        "guard_filter_fn": lambda guards: [guard.name.startswith("L[") for guard in guards],
    }
    compiled = torch.compile(step, dynamic=False, options=options)
    return lambda shape: compiled(shape.rows, shape.kv_bucket, shape.top_k, shape.depth_top_k)
