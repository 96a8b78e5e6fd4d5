"""Mimi, the codec between waveforms and codes (kyutai, arXiv 2410.00037), in plain torch and in both directions."""

from csm_cli.models.mimi.chunk_decoder import ChunkDecoder, PendingChunk
from csm_cli.models.mimi.codec import Codec, StreamingDecoder, push_all
from csm_cli.models.mimi.streaming import finished

__all__ = ["ChunkDecoder", "Codec", "PendingChunk", "StreamingDecoder", "finished", "push_all"]
