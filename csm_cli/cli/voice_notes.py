"""Notes on voices that a model does not know, and on letters that it has never heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.cli.console import log_line, warn
from csm_cli.types import Conversation

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

BUNDLED_SPEAKERS = 8  # speaker numbers that the bundled voice was trained on


def note_unknown_voices(conversations: Iterable[Conversation], checkpoint: Checkpoint) -> Iterator[Conversation]:
    """Passes conversations through; says once if the model does not know a voice or letters, or draws a voice."""
    from csm_cli.checkpoint.find import BUNDLED, has_random_voice
    from csm_cli.script.spoken_text import foreign_script

    noted = foreign = checkpoint.name != BUNDLED
    steady = not has_random_voice(checkpoint.name)
    for conversation in conversations:
        if not steady and not conversation.context and any(turn.recording is None for turn in conversation.turns):
            steady = True
            log_line(
                "note: without a voice this model draws a new one in each run; for a steady one add -v NAME, or a "
                "voice in the script (csm voices list has names, csm voices pull saves those of csm-1b)"
            )
        texts = "".join(turn.text for turn in conversation.turns if not turn.recording)
        if not foreign and (script := foreign_script(texts)):
            foreign = True
            warn(f"the text is in {script} letters, and the bundled voice has only heard English; expect no words")
        if not noted and _wants_unknown_voice(conversation):
            noted = True
            log_line(
                f"note: the bundled voice has only its own {BUNDLED_SPEAKERS} voices; other recordings and speaker "
                f"numbers from {BUNDLED_SPEAKERS} on get one of these (other voices: --model sesame/csm-1b)"
            )
        yield conversation


def _wants_unknown_voice(conversation: Conversation) -> bool:
    """Whether a speaker number is unknown to the bundled voice, or a recording is not of its own making."""
    from importlib.resources import files

    import soundfile

    from csm_cli.checkpoint.find import BUNDLED

    assets = Path(str(files("csm_cli"))) / "assets"
    with_context = {turn.speaker for turn in conversation.context}
    for turn in (*conversation.context, *conversation.turns):
        recording = turn.recording
        if recording is None:
            if turn.speaker >= BUNDLED_SPEAKERS and turn.speaker not in with_context:
                return True
        elif not recording.codes_path and assets not in recording.path.parents:
            comment = ""
            # a file that cannot be read is refused where it is spoken; M4A is converted there
            with suppress(Exception), soundfile.SoundFile(recording.path) as file:
                comment = file.comment or ""
            if BUNDLED not in comment:
                return True
    return False
