"""Chunks of many utterances on their way from codes to sound: one by one, or on CUDA together beside the frame loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from csm_cli.codec.mimi import Codec, StreamingDecoder, push_all
from csm_cli.codec.stream import Samples, Start


class Chunk:
    """Codes [T, K] of one utterance, the `last` of it or not, and what they sound like."""

    def __init__(self, deck: Deck, decoder: StreamingDecoder, codes: Tensor, last: bool) -> None:
        self.decoder, self.codes, self.last = decoder, codes, last
        self.sound: Callable[[], Samples] | None = None
        self._deck = deck

    def samples(self) -> Samples:
        """[T * frame_samples]; waits for them."""
        if self.sound is None:
            self._deck.start()
        assert self.sound is not None
        return self.sound()


class Deck:
    """Decodes chunks of one codec.

    On a CPU each is decoded as it comes, by itself, since rows decoded together are rounded otherwise. On CUDA those
    put since the last start are begun together, on a stream `beside` the frame loop's, and are waited for where samples
    are asked for. What comes out follows from what is put before each start, not from how long that takes.
    start_work: how work is begun; None: as the codec's device needs it.
    """

    def __init__(self, codec: Codec, start_work: Start | None = None) -> None:
        self.codec = codec
        self.beside = codec.device.type == "cuda" or start_work is not None
        self._start_work = start_work or codec.start_work
        self._waiting: list[Chunk] = []

    def put(self, decoder: StreamingDecoder, codes: Tensor, last: bool = False) -> Chunk:
        """The decoder's next codes [T, K]; nothing may follow the `last`. Raises as `StreamingDecoder.push` does."""
        chunk = Chunk(self, decoder, codes, last)
        self._waiting.append(chunk)
        if not self.beside:
            self.start()
        return chunk

    def start(self) -> None:
        """Begins what waits, and waits for none of it. Raises as `StreamingDecoder.push` does."""
        chunks, self._waiting = self._waiting, []
        if not chunks:
            return
        decoders, codes = [chunk.decoder for chunk in chunks], _evened(chunks)
        sound = self._start_work(lambda: torch.cat(push_all(decoders, codes)))
        first = 0
        for chunk, padded in zip(chunks, codes, strict=True):
            size = self.codec.frame_samples
            chunk.sound = _part(sound, slice(first * size, (first + len(chunk.codes)) * size))
            first += len(padded)


def _part(sound: Callable[[], Samples], part: slice) -> Callable[[], Samples]:
    """A copy, so that pinned memory can serve again."""
    return lambda: sound()[part].copy()


def _evened(chunks: list[Chunk]) -> list[Tensor]:
    """Codes [T, K] of each, a last one as long as others are, so that they are decoded with them.

    Mimi is causal: what is added behind is not heard, and nothing comes after it.
    """
    lengths = sorted({len(chunk.codes) for chunk in chunks if not chunk.last} | {max(len(c.codes) for c in chunks)})
    return [chunk.codes if not chunk.last else _longer(chunk.codes, lengths) for chunk in chunks]


def _longer(codes: Tensor, lengths: list[int]) -> Tensor:
    length = next(length for length in lengths if length >= len(codes))
    return F.pad(codes, (0, 0, 0, length - len(codes)))
