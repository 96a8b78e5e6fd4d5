"""Chunks of utterances on their way from codes to sound: one by one, together, or on CUDA beside the frame loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.models.mimi.codec import Codec, StreamingDecoder, push_all
from csm_cli.models.mimi.streaming import Samples, StreamStart


class PendingChunk:
    """Codes [T, K] of one utterance, the `last` of it or not, and what they sound like."""

    def __init__(self, deck: ChunkDecoder, decoder: StreamingDecoder, codes: Tensor, last: bool) -> None:
        self.decoder, self.codes, self.last = decoder, codes, last
        self.sound: Callable[[], Samples] | None = None
        self._deck = deck

    def samples(self) -> Samples:
        """[T * frame_samples]; waits for them."""
        if self.sound is None:
            self._deck.start_for(self)
        assert self.sound is not None
        return self.sound()


class ChunkDecoder:
    """Decodes chunks of one codec.

    On CUDA those put since the last start are begun together, on a stream beside the frame loop's, and are waited for
    where samples are asked for. What comes out follows from what is put before each start, not from how long it takes.
    On a CPU each chunk of one row is decoded as it comes. Those of several rows wait until one is asked for, and are
    decoded with it if they are as long: on the bundled voice 16 together take 0.6 of the time, to the last bit what
    they are alone. A thread of their own beside the frame loop was tried and left: each frame then took 2.5 times as
    long, since threads wait for each other between any two operators.
    start_work: how work is begun; None: as the codec's device needs it. rows: of the frame loop.
    """

    def __init__(self, codec: Codec, start_work: StreamStart | None = None, rows: int = 1) -> None:
        self.codec = codec
        self._started = codec.device.type == "cuda" or start_work is not None
        self.beside = self._started or (codec.device.type == "cpu" and rows > 1)  # sound may be asked for later
        self._start_work = start_work or codec.start_work
        self._waiting: list[PendingChunk] = []

    def put(self, decoder: StreamingDecoder, codes: Tensor, last: bool = False) -> PendingChunk:
        """The decoder's next codes [T, K]; nothing may follow the `last`. Raises as `StreamingDecoder.push` does."""
        chunk = PendingChunk(self, decoder, codes, last)
        self._waiting.append(chunk)
        if not self.beside:
            self._begin([chunk], [codes])
        return chunk

    def start(self) -> None:
        """On CUDA begins what waits, and waits for none of it. Raises as `StreamingDecoder.push` does."""
        if self._started and self._waiting:
            self._begin(self._waiting, _evened(self._waiting))

    def start_for(self, chunk: PendingChunk) -> None:
        """Begins what waits, or on a CPU what goes with a chunk that does. Raises as `StreamingDecoder.push` does."""
        self.start()
        if chunk.sound is None:
            next_ones = {each.decoder: each for each in reversed(self._waiting)}.values()
            alike = [each for each in next_ones if len(each.codes) == len(chunk.codes)]
            self._begin(alike, [each.codes for each in alike])

    def _begin(self, chunks: list[PendingChunk], codes: list[Tensor]) -> None:
        """codes: those of the chunks, perhaps longer."""
        self._waiting = [each for each in self._waiting if each not in chunks]
        decoders = [chunk.decoder for chunk in chunks]
        sound = self._start_work(lambda: torch.cat(push_all(decoders, codes)))
        first = 0
        for chunk, padded in zip(chunks, codes, strict=True):
            size = self.codec.frame_samples
            chunk.sound = _part(sound, slice(first * size, (first + len(chunk.codes)) * size))
            first += len(padded)


def _part(sound: Callable[[], Samples], part: slice) -> Callable[[], Samples]:
    """A copy, so that pinned memory can serve again."""
    return lambda: sound()[part].copy()


def _evened(chunks: list[PendingChunk]) -> list[Tensor]:
    """Codes [T, K] of each, a last one as long as others are, so that they are decoded with them.

    Mimi is causal: what is added behind is not heard, and nothing comes after it.
    """
    lengths = sorted({len(chunk.codes) for chunk in chunks if not chunk.last} | {max(len(c.codes) for c in chunks)})
    return [chunk.codes if not chunk.last else _longer(chunk.codes, lengths) for chunk in chunks]


def _longer(codes: Tensor, lengths: list[int]) -> Tensor:
    length = next(length for length in lengths if length >= len(codes))
    return F.pad(codes, (0, 0, 0, length - len(codes)))
