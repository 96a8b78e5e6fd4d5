"""Mimi, the codec between waveforms and codes (kyutai, arXiv 2410.00037), in plain torch and in both directions."""

from csm_cli.models.mimi.codec import Codec
from csm_cli.models.mimi.streaming import ChunkDecoder, PendingChunk, StreamingDecoder, push_all, run_inline

__all__ = ["ChunkDecoder", "Codec", "PendingChunk", "StreamingDecoder", "push_all", "run_inline"]
