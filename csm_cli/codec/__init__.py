"""Mimi, the codec between waveforms and codes (kyutai, arXiv 2410.00037), in plain torch and in both directions."""

from csm_cli.codec.deck import Chunk, Deck
from csm_cli.codec.mimi import Codec, StreamingDecoder, push_all
from csm_cli.codec.stream import finished

__all__ = ["Chunk", "Codec", "Deck", "StreamingDecoder", "finished", "push_all"]
