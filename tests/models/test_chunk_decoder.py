"""Chunks become sound: as they come, or together where asked for, or begun together beside the frame loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import Shape, random_codec, random_codes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from csm_cli.models.mimi import ChunkDecoder, Codec, push_all
from csm_cli.models.mimi import streaming as deck
from csm_cli.models.mimi import streaming as stream

VIEWS = {"slice", "select", "transpose", "permute", "expand", "view", "unsqueeze", "split_with_sizes", "unbind", "t"}
VIEWS |= {"flatten", "split", "narrow", "detach", "alias", "chunk", "reshape"}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return random_codec(Shape().codec())


class Line:
    """Work that is done when its result is asked for, and what was done in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], NDArray[np.float32]]:
        self.log.append("begun")
        samples = work().numpy()

        def wait() -> NDArray[np.float32]:
            self.log.append("awaited")
            return samples

        return wait


def test_on_a_cpu_each_chunk_of_one_row_is_decoded_as_it_comes(codec: Codec) -> None:
    plain, spoken = ChunkDecoder(codec), [random_codes(codec, frames) for frames in (20, 31)]
    decoders, others = [codec.decoder() for _ in spoken], [codec.decoder() for _ in spoken]
    for first in (0, 4, 8, 16):
        for decoder, other, codes in zip(decoders, others, spoken, strict=True):
            chunk = plain.submit(decoder, codes[first : 2 * first or 4])
            assert chunk.result is not None and not plain.deferred
            assert np.array_equal(chunk.samples(), other.push(chunk.codes).numpy())


def spied(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many frames of each row are decoded together, time after time."""
    lengths: list[list[int]] = []

    def spy(decoders: object, codes: list[Tensor]) -> list[Tensor]:
        lengths.append([len(each) for each in codes])
        return push_all(decoders, codes)  # type: ignore[arg-type]

    monkeypatch.setattr(deck, "push_all", spy)
    return lengths


def test_chunks_of_several_rows_wait_for_one_another_and_sound_as_alone(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = spied(monkeypatch)
    many, spoken = ChunkDecoder(codec, rows=4), [random_codes(codec, frames) for frames in (10, 14, 5, 11)]
    decoders = [codec.decoder() for _ in spoken]
    chunks = [[many.submit(each, codes[:5])] for each, codes in zip(decoders, spoken, strict=True)]
    many.flush()
    assert many.deferred and not lengths
    chunks[3].append(many.submit(decoders[3], spoken[3][5:], is_last=True))
    chunks[0].append(many.submit(decoders[0], spoken[0][5:], is_last=True))  # as long as those that are asked for first
    chunks[1].append(many.submit(decoders[1], spoken[1][5:], is_last=True))
    sounds = [np.concatenate([chunk.samples() for chunk in row]) for row in chunks]
    assert lengths == [[5, 5, 5, 5], [5], [9], [6]]
    for codes, sound in zip(spoken, sounds, strict=True):
        alone = codec.decoder()
        wanted = [alone.push(part) for part in (codes[:5], codes[5:])]
        assert np.array_equal(sound, torch.cat(wanted).numpy())


def test_a_code_that_is_none_is_told_where_its_chunk_is_asked_for(codec: Codec) -> None:
    many = ChunkDecoder(codec, rows=2)
    chunk = many.submit(codec.decoder(), torch.full((4, codec.codebooks), -5))
    with pytest.raises(ValueError, match="frame 0, codebook 0 holds -5"):
        chunk.samples()


def test_what_waits_is_begun_together_and_nobody_waits_for_it_unasked(codec: Codec) -> None:
    line = Line()
    beside = ChunkDecoder(codec, line)
    spoken = [random_codes(codec, frames) for frames in (12, 24)]
    chunks = [beside.submit(codec.decoder(), codes) for codes in spoken]
    assert line.log == []
    beside.flush()
    beside.flush()
    assert line.log == ["begun"]
    for chunk, codes in zip(chunks, spoken, strict=True):
        np.testing.assert_allclose(chunk.samples(), codec.decode(codes).numpy(), atol=1e-5)
    assert line.log == ["begun", "awaited", "awaited"]


def test_who_asks_for_samples_that_still_wait_begins_all(codec: Codec) -> None:
    line = Line()
    beside = ChunkDecoder(codec, line)
    first, second = (beside.submit(codec.decoder(), random_codes(codec, frames)) for frames in (4, 9))
    assert len(second.samples()) == 9 * 1920 and len(first.samples()) == 4 * 1920
    assert line.log == ["begun", "awaited", "awaited"]


def test_last_chunks_are_decoded_with_those_that_go_on(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are new, some go on, some end, each after another number of frames: two lengths are decoded."""
    lengths = spied(monkeypatch)
    beside, spoken = ChunkDecoder(codec, Line()), [random_codes(codec, frames) for frames in (24, 16, 17, 3, 4)]
    decoders = [codec.decoder() for _ in spoken]
    sounds = [[beside.submit(each, codes[:12])] for each, codes in zip(decoders[:3], spoken, strict=False)] + [[], []]
    beside.flush()
    for row, (decoder, codes) in enumerate(zip(decoders, spoken, strict=True)):
        rest = codes[12:] if row < 3 else codes
        sounds[row].append(beside.submit(decoder, rest, is_last=row in (1, 2, 3)))
    beside.flush()
    assert lengths == [[12, 12, 12], [12, 4, 12, 4, 4]]
    for codes, parts in zip(spoken, sounds, strict=True):
        got = np.concatenate([part.samples() for part in parts])
        np.testing.assert_allclose(got, codec.decode(codes).numpy(), atol=1e-5)


def test_last_chunks_alone_are_as_long_as_the_longest(codec: Codec) -> None:
    beside, spoken = ChunkDecoder(codec, Line()), [random_codes(codec, frames) for frames in (3, 7)]
    for chunk, codes in zip(
        [beside.submit(codec.decoder(), each, is_last=True) for each in spoken], spoken, strict=True
    ):
        np.testing.assert_allclose(chunk.samples(), codec.decode(codes).numpy(), atol=1e-5)


class Stream:
    """A CUDA stream that writes down what it is told."""

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


def test_a_stream_waits_for_the_weights_and_for_nothing_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "weights")
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))

    def work() -> Tensor:
        Stream.log.append("work" if Stream.inside else "work on another stream")
        return torch.arange(3.0)

    wait = stream.CudaStreamExecutor(torch.device("cpu"))(work)
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
    """Of a push of so many frames of rows that go on."""
    decoders, codes = [codec.decoder() for _ in range(rows)], [random_codes(codec, frames)] * rows
    push_all(decoders, codes)
    decoders.reverse()
    with Launches() as counted:
        push_all(decoders, codes)
    return counted.count


def test_a_push_of_mimis_own_size_is_a_few_hundred_launches_whatever_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mimi = random_codec({}, "meta")
    mimi.max_batch_frames = 32 * 12
    alone = launches(mimi, 1, 12)
    assert 200 < alone < 350
    assert launches(mimi, 32, 12) <= alone + 2
