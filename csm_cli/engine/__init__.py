"""The decode engine: tensors in, frames out. It handles no text and no files, and prints nothing."""

from csm_cli.engine.requests import Frame, Request, SamplingParams
from csm_cli.engine.scheduler import Engine, decode, decode_loop

__all__ = ["Engine", "Frame", "Request", "SamplingParams", "decode", "decode_loop"]
