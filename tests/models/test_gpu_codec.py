"""On CUDA: batched, chunked and asynchronous decoding equals that of single rows and a CPU's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import random_codec, random_codes
from numpy.typing import NDArray

from csm_cli.checkpoint import open_checkpoint
from csm_cli.generation.events import Event, FrameProgress, Utterance
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.models.mimi import ChunkDecoder, Codec, run_inline
from csm_cli.types import Conversation, GenerationOptions, RetryPolicy, Turn

pytestmark = pytest.mark.gpu
CHUNKS = (4, 4, 8, 12, 12)
FRAMES = [40, 40, 37, 30, 17, 16, 5, 4, 3] * 4  # of 36 rows
ASLEEP = 4_000_000_000  # cycles of the device, seconds


@pytest.fixture(scope="module")
def mimi() -> Codec:
    """Of its own size."""
    return random_codec({}, "cuda")


def difference(ours: torch.Tensor | NDArray[np.float32], theirs: torch.Tensor) -> float:
    """As a part of full scale: random weights are loud."""
    got, expected = torch.as_tensor(ours).cpu(), theirs.cpu()
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def test_gpu_decodes_as_cpu(mimi: Codec) -> None:
    codes = random_codes(mimi, 30)
    assert difference(mimi.decode(codes), random_codec({}).decode(codes)) < 1e-4


@pytest.mark.parametrize("chunk", [1, 3, 12, 50])
def test_chunked_decoding_equals_whole_decoding(mimi: Codec, chunk: int) -> None:
    codes = random_codes(mimi, 170)  # beyond the window of 250 positions
    decoder = mimi.decoder()
    samples = torch.cat([decoder.push(piece) for piece in codes.split(chunk)])
    assert difference(samples, mimi.decode(codes)) < 1e-4


def together(chunk_decoder: ChunkDecoder, frames: list[int]) -> list[NDArray[np.float32]]:
    """Rows of so many frames decoded by one chunk_decoder, which end where others go on."""
    rows = [random_codes(chunk_decoder.codec, count) for count in frames]
    decoders, sounds = [chunk_decoder.codec.decoder() for _ in rows], [[] for _ in rows]
    first = 0
    for size in CHUNKS:
        for decoder, codes, sound in zip(decoders, rows, sounds, strict=True):
            if piece := len(codes[first : first + size]):
                last = first + size >= len(codes)
                sound.append(chunk_decoder.submit(decoder, codes[first : first + piece], last))
        chunk_decoder.flush()
        first += size
    return [np.concatenate([chunk.samples() for chunk in sound]) for sound in sounds]


def test_batched_rows_equal_single_rows(mimi: Codec) -> None:
    assert ChunkDecoder(mimi).deferred
    for samples, count in zip(together(ChunkDecoder(mimi), FRAMES), FRAMES, strict=True):
        assert difference(samples, mimi.decode(random_codes(mimi, count))) < 1e-4


def test_cuda_stream_equals_inline_decoding(mimi: Codec) -> None:
    """Nor do others at work beside it."""
    with torch.cuda.device(mimi.device):
        torch.cuda._sleep(ASLEEP // 40)
    for own, none in zip(
        together(ChunkDecoder(mimi), FRAMES), together(ChunkDecoder(mimi, run_inline), FRAMES), strict=True
    ):
        assert difference(own, torch.from_numpy(none)) < 1e-6


def test_codec_does_not_wait_for_the_model(mimi: Codec) -> None:
    chunk_decoder = ChunkDecoder(mimi)
    chunk_decoder.submit(mimi.decoder(), random_codes(mimi, 12)).samples()  # which sets the stream up
    torch.cuda.synchronize()
    torch.cuda._sleep(ASLEEP)
    chunk_decoder.submit(mimi.decoder(), random_codes(mimi, 12)).samples()
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    "retry_policy", [RetryPolicy(), RetryPolicy(trim=True, max_retries=1), RetryPolicy(stream=True)], ids=str
)
def test_output_does_not_depend_on_timing(tiny_checkpoint: Path, retry_policy: RetryPolicy) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    talks = [Conversation((Turn(0, f"Number {n}."), Turn(1, "And more.")), id=str(n)) for n in range(11)]
    options = GenerationOptions(temperature=1.0, max_duration=2.5, seed=1)

    def speak(busy: bool) -> list[Event]:
        events, synth = [], Synthesizer(checkpoint, torch.device("cuda"), torch.float32, slots=8)
        for event in synth.speak(talks, options, retry_policy):
            events.append(event)
            if busy and isinstance(event, FrameProgress) and event.frames % 5 == 0:
                torch.cuda._sleep(ASLEEP // 1000)
        return events

    codec = Codec.load(checkpoint.codec_config, checkpoint.codec_weights, "cuda", checkpoint.config.codebooks)
    first, again = speak(busy=False), speak(busy=True)
    assert [type(event) for event in first] == [type(event) for event in again]
    for one, other in zip(first, again, strict=True):
        if isinstance(one, Utterance) and isinstance(other, Utterance):
            assert torch.equal(one.codes, other.codes) and one.stop == other.stop
            np.testing.assert_allclose(one.audio.samples, other.audio.samples, atol=1e-6)
            assert difference(one.audio.samples, codec.decode(one.codes)) < 1e-4
