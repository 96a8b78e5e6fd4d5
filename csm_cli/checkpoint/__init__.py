"""Find and read a checkpoint: the bundled voice, a directory, a Hugging Face id, or Sesame's original format."""

from csm_cli.checkpoint.layout import expected_shapes
from csm_cli.checkpoint.opening import Checkpoint, Outline, companions, open_checkpoint, outline

__all__ = ["Checkpoint", "Outline", "companions", "expected_shapes", "open_checkpoint", "outline"]
