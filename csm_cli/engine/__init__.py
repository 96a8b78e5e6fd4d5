"""The decode engine: tensors in, frames out. It knows no text, no files and prints nothing."""

from csm_cli.engine.decode_loop import decode, decode_loop
from csm_cli.engine.requests import Frame, Request
from csm_cli.engine.sampler import SamplingParams
from csm_cli.engine.scheduler import Engine

__all__ = ["Engine", "Frame", "Request", "SamplingParams", "decode", "decode_loop"]
