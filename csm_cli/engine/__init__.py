"""The decode engine: tensors in, frames out. It knows no text, no files and prints nothing."""

from csm_cli.engine.loop import decode, steps
from csm_cli.engine.request import Frame, Request
from csm_cli.engine.sampling import Sampling
from csm_cli.engine.slots import Engine

__all__ = ["Engine", "Frame", "Request", "Sampling", "decode", "steps"]
