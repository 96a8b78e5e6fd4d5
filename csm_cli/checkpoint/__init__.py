"""Find and read a checkpoint: the bundled voice, a directory, a Hugging Face id, or Sesame's original format."""

from csm_cli.checkpoint.open import Checkpoint, CheckpointOutline, companion_files, open_checkpoint, read_outline
from csm_cli.checkpoint.tensor_shapes import expected_shapes

__all__ = ["Checkpoint", "CheckpointOutline", "companion_files", "expected_shapes", "open_checkpoint", "read_outline"]
