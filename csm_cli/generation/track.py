"""The track of finished utterances, and the metadata of its file. Imports numpy and libsndfile only when called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli import __version__
from csm_cli.generation.events import Utterance
from csm_cli.report import format_ranges

if TYPE_CHECKING:
    from csm_cli.audio.io import Tags
    from csm_cli.audio.mix import Track
    from csm_cli.checkpoint import Checkpoint


def mix_utterances(utterances: Sequence[Utterance], tail: float = 0.0, loudness: float | None = None) -> Track:
    """One track with the gaps and gains of the turns; `tail` and `loudness` as in `Conversation`."""
    from csm_cli.audio.mix import TrackClip, mix

    clips = [TrackClip(each.audio.samples, each.turn.gap, each.turn.gain, each.turn.label) for each in utterances]
    return mix(clips, utterances[0].audio.rate, tail, loudness)


def audio_tags(utterances: Sequence[Utterance], checkpoint: Checkpoint, title: str = "") -> Tags:
    """The metadata of an audio file: that it is synthetic, the model and the seeds."""
    from csm_cli.audio.io import Tags

    synthetic = [each for each in utterances if each.stop != "recorded"]
    # only the last part of a local path: files are shared, and paths are private
    model = f"{checkpoint.name} at {checkpoint.revision}" if checkpoint.revision else Path(checkpoint.name).name
    comment = f"synthetic speech; model: {model}; seed: {format_ranges(each.seed for each in synthetic)}"
    if not synthetic:
        comment = "recordings; no speech in this file was synthesized"
    elif len(synthetic) < len(utterances):
        comment += f"; {len(utterances) - len(synthetic)} of {len(utterances)} turns are recordings"
    return Tags(f"csm-cli {__version__}", comment, title)
