"""Decoding chunks to samples: at once, batched on request, or asynchronously."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.tiny import Shape, random_codec, random_codes
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from csm_cli.models.mimi import ChunkDecoder, Codec, push_all, streaming

VIEWS = {"slice", "select", "transpose", "permute", "expand", "view", "unsqueeze", "split_with_sizes", "unbind", "t"}
VIEWS |= {"flatten", "split", "narrow", "detach", "alias", "chunk", "reshape"}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return random_codec(Shape().codec())


class DeferredExecutor:
    """An executor that logs when computations are started and awaited."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], NDArray[np.float32]]:
        self.log.append("started")
        samples = compute().numpy()

        def wait() -> NDArray[np.float32]:
            self.log.append("awaited")
            return samples

        return wait


def test_single_row_on_a_cpu_is_decoded_at_once(codec: Codec) -> None:
    chunk_decoder, spoken = ChunkDecoder(codec), [random_codes(codec, frames) for frames in (20, 31)]
    decoders, others = [codec.decoder() for _ in spoken], [codec.decoder() for _ in spoken]
    for first in (0, 4, 8, 16):
        for decoder, other, codes in zip(decoders, others, spoken, strict=True):
            chunk = chunk_decoder.submit(decoder, codes[first : 2 * first or 4])
            assert chunk.result is not None and not chunk_decoder.deferred
            assert np.array_equal(chunk.samples(), other.push(chunk.codes).numpy())


def batch_lengths(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How chunk_decoder frames of each row are decoded together, time after time."""
    lengths: list[list[int]] = []

    def spy(decoders: object, codes: list[Tensor]) -> list[Tensor]:
        lengths.append([len(each) for each in codes])
        return push_all(decoders, codes)  # type: ignore[arg-type]

    monkeypatch.setattr(streaming, "push_all", spy)
    return lengths


def test_rows_on_a_cpu_are_batched_and_bit_identical(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = batch_lengths(monkeypatch)
    chunk_decoder, spoken = ChunkDecoder(codec, rows=4), [random_codes(codec, frames) for frames in (10, 14, 5, 11)]
    decoders = [codec.decoder() for _ in spoken]
    chunks = [[chunk_decoder.submit(each, codes[:5])] for each, codes in zip(decoders, spoken, strict=True)]
    chunk_decoder.flush()
    assert chunk_decoder.deferred and not lengths
    chunks[3].append(chunk_decoder.submit(decoders[3], spoken[3][5:], is_last=True))
    chunks[0].append(
        chunk_decoder.submit(decoders[0], spoken[0][5:], is_last=True)
    )  # as long as those that are asked for first
    chunks[1].append(chunk_decoder.submit(decoders[1], spoken[1][5:], is_last=True))
    sounds = [np.concatenate([chunk.samples() for chunk in row]) for row in chunks]
    assert lengths == [[5, 5, 5, 5], [5], [9], [6]]
    for codes, sound in zip(spoken, sounds, strict=True):
        alone = codec.decoder()
        expected = [alone.push(part) for part in (codes[:5], codes[5:])]
        assert np.array_equal(sound, torch.cat(expected).numpy())


def test_invalid_code_is_reported_when_samples_are_requested(codec: Codec) -> None:
    chunk_decoder = ChunkDecoder(codec, rows=2)
    chunk = chunk_decoder.submit(codec.decoder(), torch.full((4, codec.codebooks), -5))
    with pytest.raises(ValueError, match="frame 0, codebook 0 holds -5"):
        chunk.samples()


def test_flush_starts_all_waiting_chunks_at_once(codec: Codec) -> None:
    executor = DeferredExecutor()
    chunk_decoder = ChunkDecoder(codec, executor)
    spoken = [random_codes(codec, frames) for frames in (12, 24)]
    chunks = [chunk_decoder.submit(codec.decoder(), codes) for codes in spoken]
    assert executor.log == []
    chunk_decoder.flush()
    chunk_decoder.flush()
    assert executor.log == ["started"]
    for chunk, codes in zip(chunks, spoken, strict=True):
        np.testing.assert_allclose(chunk.samples(), codec.decode(codes).numpy(), atol=1e-5)
    assert executor.log == ["started", "awaited", "awaited"]


def test_requesting_samples_starts_all_waiting_chunks(codec: Codec) -> None:
    executor = DeferredExecutor()
    chunk_decoder = ChunkDecoder(codec, executor)
    first, second = (chunk_decoder.submit(codec.decoder(), random_codes(codec, frames)) for frames in (4, 9))
    assert len(second.samples()) == 9 * 1920 and len(first.samples()) == 4 * 1920
    assert executor.log == ["started", "awaited", "awaited"]


def test_last_chunks_are_padded_to_join_a_batch(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are new, some go on, some end, each after another number of frames: two lengths are decoded."""
    lengths = batch_lengths(monkeypatch)
    chunk_decoder, spoken = (
        ChunkDecoder(codec, DeferredExecutor()),
        [random_codes(codec, frames) for frames in (24, 16, 17, 3, 4)],
    )
    decoders = [codec.decoder() for _ in spoken]
    sounds = [[chunk_decoder.submit(each, codes[:12])] for each, codes in zip(decoders[:3], spoken, strict=False)] + [
        [],
        [],
    ]
    chunk_decoder.flush()
    for row, (decoder, codes) in enumerate(zip(decoders, spoken, strict=True)):
        rest = codes[12:] if row < 3 else codes
        sounds[row].append(chunk_decoder.submit(decoder, rest, is_last=row in (1, 2, 3)))
    chunk_decoder.flush()
    assert lengths == [[12, 12, 12], [12, 4, 12, 4, 4]]
    for codes, parts in zip(spoken, sounds, strict=True):
        got = np.concatenate([part.samples() for part in parts])
        np.testing.assert_allclose(got, codec.decode(codes).numpy(), atol=1e-5)


def test_only_last_chunks_are_padded_to_the_longest(codec: Codec) -> None:
    chunk_decoder, spoken = ChunkDecoder(codec, DeferredExecutor()), [random_codes(codec, frames) for frames in (3, 7)]
    for chunk, codes in zip(
        [chunk_decoder.submit(codec.decoder(), each, is_last=True) for each in spoken], spoken, strict=True
    ):
        np.testing.assert_allclose(chunk.samples(), codec.decode(codes).numpy(), atol=1e-5)


class Stream:
    """A CUDA stream that logs its calls."""

    log: list[str]
    inside = False

    def __init__(self, device: object) -> None:
        Stream.log = []

    def wait_stream(self, other: object) -> None:
        self.log.append(f"waits for the {other}")

    def record_event(self) -> Stream:
        self.log.append("event" if Stream.inside else "event of another stream")
        return self

    def synchronize(self) -> None:
        self.log.append("awaited")


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    Stream.inside = True
    yield
    Stream.inside = False


def test_cuda_stream_waits_only_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "weights")
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))

    def compute() -> Tensor:
        Stream.log.append("work" if Stream.inside else "work on another stream")
        return torch.arange(3.0)

    wait = streaming.CudaStreamExecutor(torch.device("cpu"))(compute)
    assert Stream.log == ["waits for the weights", "work", "event"]
    assert wait().tolist() == [0.0, 1.0, 2.0]
    assert Stream.log[3:] == ["awaited"]


class Launches(TorchDispatchMode):
    """Counts operators that are kernels on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) and each.is_meta for each in (out if isinstance(out, list | tuple) else [out])):
            self.count += func._schema.name.removeprefix("aten::") not in VIEWS
        return out


def launches(codec: Codec, rows: int, frames: int) -> int:
    """Of a push of so chunk_decoder frames of rows that go on."""
    decoders, codes = [codec.decoder() for _ in range(rows)], [random_codes(codec, frames)] * rows
    push_all(decoders, codes)
    decoders.reverse()
    with Launches() as counted:
        push_all(decoders, codes)
    return counted.count


def test_number_of_launches_does_not_depend_on_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mimi = random_codec({}, "meta")
    mimi.max_batch_frames = 32 * 12
    alone = launches(mimi, 1, 12)
    assert 200 < alone < 350
    assert launches(mimi, 32, 12) <= alone + 2
