"""Decoding chunk by chunk: the streaming state, decoders of single utterances, and batches of chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from csm_cli.models.mimi.codec import Codec

Samples = NDArray[np.float32]
Executor = Callable[[Callable[[], Tensor]], Callable[[], Samples]]
"""Starts a computation and returns a function that waits for its samples."""

# What each layer carries from chunk to chunk, [B, ...] each. It is stored by layer, so that an utterance has one state
# and states can be joined. At the start of a batch it is empty; a new row beside others has zeros, and on a CPU any
# new row, so that its sums do not depend on the others.
StreamingState = dict[nn.Module, tuple[Tensor, ...]]
StateLayout = list[tuple[nn.Module, list[torch.Size]]]

_MAX_FRAMES = 50  # computed at once, which bounds the memory of a long recording


def pack(state: StreamingState) -> tuple[Tensor, StateLayout]:
    """The state of B rows as one tensor [B, M], and the layers and shapes it consists of.

    Rows can then be joined by one copy, where hundreds of small ones would take longer than the decoding.
    """
    layout = [(layer, [part.shape[1:] for part in parts]) for layer, parts in state.items()]
    return torch.cat([part.flatten(1) for parts in state.values() for part in parts], dim=1), layout


def unpack(rows: Tensor, layout: StateLayout) -> StreamingState:
    """The inverse of `pack`."""
    sizes = [shape.numel() for _, shapes in layout for shape in shapes]
    parts = iter(torch.split(rows, sizes, dim=1))
    return {layer: tuple(next(parts).view(len(rows), *shape) for shape in shapes) for layer, shapes in layout}


class StreamingDecoder:
    """Decodes one utterance chunk by chunk; the samples do not depend on how it is cut."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.state: Tensor | None = None  # [M], None before the first chunk
        self.frames = 0

    def push(self, codes: Tensor) -> Tensor:
        """The samples [T * frame_samples] of the next codes [T, K]; raises as `Codec.decode` does."""
        (samples,) = push_all([self], [codes])
        return samples

    def check(self, codes: Tensor) -> None:
        """Raises ValueError as `Codec.decode` does."""
        codebooks, size = self.codec.codebooks, self.codec.config.codebook_size
        if codes.ndim != 2 or codes.shape[1] != codebooks:
            raise ValueError(f"expected codes [T, {codebooks}], got {list(codes.shape)}")
        if invalid := ((codes < 0) | (codes >= size)).nonzero().tolist():
            frame, codebook = invalid[0]
            where = f"frame {self.frames + frame}, codebook {codebook}"
            raise ValueError(f"{where} holds {int(codes[frame, codebook])}; codes go from 0 to {size - 1}")


@torch.inference_mode()
def push_all(decoders: Sequence[StreamingDecoder], chunks: Sequence[Tensor]) -> list[Tensor]:
    """Each decoder's samples [T * frame_samples] of its next codes [T, K]; chunks of one length are computed together.

    Raises:
        ValueError: as `Codec.decode` does, before any decoder has changed.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, (decoder, codes) in enumerate(zip(decoders, chunks, strict=True)):
        decoder.check(codes)
        if len(codes):
            groups[len(codes)].append(index)
    samples = [torch.zeros(0, device=decoders[0].codec.device)] * len(decoders) if decoders else []
    for length, members in sorted(groups.items()):
        limit = max(1, decoders[0].codec.max_batch_frames // length)
        for start in range(0, len(members), limit):
            batch = members[start : start + limit]
            rows = _push_batch([decoders[index] for index in batch], torch.stack([chunks[index] for index in batch]))
            for index, row in zip(batch, rows, strict=True):
                samples[index] = row
    return samples


def _push_batch(decoders: Sequence[StreamingDecoder], codes: Tensor) -> Tensor:
    """[B, T * frame_samples] of [B, T, K]."""
    codec = decoders[0].codec
    states = [decoder.state for decoder in decoders]
    started = [state for state in states if state is not None]
    state: StreamingState = {}
    if len(states) == 1 and started:
        state = unpack(started[0][None], codec.state_layout)
    elif started or codec.device.type == "cpu":
        zeros = torch.zeros_like(started[0]) if started else _zeros(codec)
        state = unpack(torch.stack([zeros if each is None else each for each in states]), codec.state_layout)
    on_device = codes.to(codec.device, non_blocking=codec.device.type == "cuda")
    pieces = torch.split(on_device.transpose(1, 2), _MAX_FRAMES, dim=-1)  # [B, K, T]
    samples = torch.cat([codec.network.decode(piece, state) for piece in pieces], dim=-1)
    packed, codec.state_layout = pack(state)
    for decoder, row in zip(decoders, packed, strict=True):
        decoder.state = row
        decoder.frames += codes.shape[1]
    return samples


def _zeros(codec: Codec) -> Tensor:
    """The state [M] of a new row; learns the codec's layout from one frame, if it is not known yet."""
    if not codec.state_layout:
        state: StreamingState = {}
        codec.network.decode(torch.zeros(1, codec.codebooks, 1, dtype=torch.int64, device=codec.device), state)
        _, codec.state_layout = pack(state)
    return torch.zeros(sum(shape.numel() for _, shapes in codec.state_layout for shape in shapes), device=codec.device)


class CudaStreamExecutor:
    """Runs computations on a CUDA stream of its own; their results are awaited on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # which loads the weights

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Samples]:
        """Starts it. Its tensors are used on this stream alone, so that their memory is not reused too early."""
        with torch.cuda.stream(self._stream):
            samples = compute()
            pinned = torch.empty(samples.shape, dtype=samples.dtype, pin_memory=True)
            pinned.copy_(samples, non_blocking=True)
            done = self._stream.record_event()

        def wait() -> Samples:
            done.synchronize()
            return pinned.numpy()

        return wait


def run_inline(compute: Callable[[], Tensor]) -> Callable[[], Samples]:
    """The executor that computes at once."""
    samples: Samples = compute().cpu().numpy()
    return lambda: samples


@dataclass(eq=False)
class PendingChunk:
    """Codes [T, K] of one utterance, and their samples once started. is_last: the utterance ends with them."""

    chunk_decoder: ChunkDecoder
    decoder: StreamingDecoder
    codes: Tensor
    is_last: bool
    result: Callable[[], Samples] | None = None

    def samples(self) -> Samples:
        """[T * frame_samples]; waits for them. Raises as `StreamingDecoder.push` does."""
        if self.result is None:
            self.chunk_decoder.flush_for(self)
        assert self.result is not None
        return self.result()


class ChunkDecoder:
    """Batches the chunks of several utterances of one codec.

    On CUDA the chunks submitted since the last flush are started together, on a stream beside the decode loop's. The
    samples depend on what is submitted before each flush, not on timing. On a CPU a chunk of a single row is decoded
    at once. Those of several rows wait until one is needed, and are decoded with it if they have the same length; they
    are bit-identical to single ones.
    executor: None: as the codec's device needs it. rows: of the decode loop.
    """

    def __init__(self, codec: Codec, executor: Executor | None = None, rows: int = 1) -> None:
        self.codec = codec
        self._async = codec.device.type == "cuda" or executor is not None
        self.deferred = self._async or (codec.device.type == "cpu" and rows > 1)  # samples should be requested late
        self._executor = executor or codec.executor
        self._waiting: list[PendingChunk] = []

    def submit(self, decoder: StreamingDecoder, codes: Tensor, is_last: bool = False) -> PendingChunk:
        """The decoder's next codes [T, K]; nothing may follow the last. Raises as `StreamingDecoder.push` does."""
        chunk = PendingChunk(self, decoder, codes, is_last)
        self._waiting.append(chunk)
        if not self.deferred:
            self._start([chunk], [codes])
        return chunk

    def discard(self, decoder: StreamingDecoder) -> None:
        """Drops the chunks of an utterance that nobody waits for any more."""
        self._waiting = [each for each in self._waiting if each.decoder is not decoder]

    def flush(self) -> None:
        """On CUDA starts all waiting chunks without waiting for them. Raises as `StreamingDecoder.push` does.

        A last chunk is padded to the length of another one, so that they are decoded together: Mimi is causal, so the
        padding changes no sample of the chunk, and nothing follows it.
        """
        if not (self._async and self._waiting):
            return
        chunks, longest = self._waiting, max(len(chunk.codes) for chunk in self._waiting)
        lengths = sorted({len(chunk.codes) for chunk in chunks if not chunk.is_last} | {longest})
        codes = []
        for chunk in chunks:
            size = len(chunk.codes)
            padding = next(length for length in lengths if length >= size) - size if chunk.is_last else 0
            codes.append(F.pad(chunk.codes, (0, 0, 0, padding)) if padding else chunk.codes)
        self._start(chunks, codes)

    def flush_for(self, chunk: PendingChunk) -> None:
        """Starts all waiting chunks, on a CPU only those that can be batched with this one."""
        self.flush()
        if chunk.result is None:
            next_chunks = {each.decoder: each for each in reversed(self._waiting)}.values()
            batch = [each for each in next_chunks if len(each.codes) == len(chunk.codes)]
            self._start(batch, [each.codes for each in batch])

    def _start(self, chunks: list[PendingChunk], codes: list[Tensor]) -> None:
        """codes: those of the chunks, perhaps padded."""
        self._waiting = [each for each in self._waiting if each not in chunks]
        decoders = [chunk.decoder for chunk in chunks]
        result = self._executor(lambda: torch.cat(push_all(decoders, codes)))
        first, size = 0, self.codec.frame_samples
        for chunk, padded in zip(chunks, codes, strict=True):
            chunk.result = _slice(result, slice(first * size, (first + len(chunk.codes)) * size))
            first += len(padded)


def _slice(result: Callable[[], Samples], part: slice) -> Callable[[], Samples]:
    """A copy, so that pinned memory can be reused."""
    return lambda: result()[part].copy()
