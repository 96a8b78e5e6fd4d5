"""Find, load and export checkpoints: the bundled voice, directories, Hugging Face ids, Sesame's original format."""

from csm_cli.checkpoint.load import (
    Checkpoint,
    CheckpointConfig,
    open_checkpoint,
    processor_files,
    read_checkpoint_config,
)
from csm_cli.checkpoint.weights import expected_shapes

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "expected_shapes",
    "open_checkpoint",
    "processor_files",
    "read_checkpoint_config",
]
