"""Makes the bundled saved voices: `python -m csm_cli.recipe.saved_voices`. Needs espeak-ng."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path

import numpy as np

from csm_cli.audio.io import Audio
from csm_cli.recipe.corpus import RATE, VOICES, Espeak, render_voice
from csm_cli.voices.clip import prepare_clip
from csm_cli.voices.store import VoiceInfo, save_voice

_LOG = logging.getLogger(__name__)

# name: (index into `VOICES`, text)
BUNDLED = {
    "ash": (0, "The market opens early in the morning. We buy bread and apples there, and walk home along the river."),
    "birch": (1, "My sister has a small garden behind the house. In the summer it is full of roses and green beans."),
    "cedar": (2, "The train leaves at nine, so there is time for tea. Bring a warm coat, the evening will be cold."),
    "dune": (3, "He reads the letter twice and puts it away. Then he opens the window and listens to the rain."),
}


def main(folder: Path | None = None) -> None:
    """Writes every bundled voice below `folder`; the package's own folder if None."""
    root = folder or Path(str(resources.files("csm_cli") / "assets" / "voices"))
    espeak = Espeak()
    for name, (voice, text) in BUNDLED.items():
        _, samples = render_voice(espeak, text, voice)
        espeak_voice = VOICES[voice]
        clip, _ = prepare_clip(Audio(samples.astype(np.float32) / np.float32(32768), RATE), text)
        speed = f"{espeak_voice.rate} words a minute"
        source = f"espeak-ng, {espeak_voice.name}, {speed}, pitch {espeak_voice.pitch}, range {espeak_voice.range}"
        save_voice(root / name, clip, VoiceInfo(text, "Apache-2.0; synthetic speech", source))
        _LOG.info("%s: %.1f s", name, clip.duration)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
