"""What determines how a turn sounds, in one definition: incremental runs and batches recognize finished work by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_cli.storage.fingerprint import fingerprint
from csm_cli.types import DEFAULT_LANGUAGE, Conversation, GenerationOptions, RetryPolicy, Turn, resolve_options

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint

MAX_CACHED_FILES = 4096  # bounds memory where every item of a batch has its own recordings


@dataclass(frozen=True)
class SynthesisSetup:
    """Everything besides the script that determines how it sounds. Device, dtype and int8 do not count.

    flags: options of the command line, over the script's own. verified: whether a recognizer judges takes.
    """

    checkpoint: Checkpoint
    flags: GenerationOptions
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    verified: bool = False
    _files: dict[Path, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def options(self, conversation: Conversation, turn: Turn) -> GenerationOptions:
        """The options by which `turn` is generated."""
        return resolve_options(self.flags, turn, conversation.defaults, self.checkpoint.defaults)

    def content(self) -> list[Any]:
        """The setup as JSON values; flags are left out, since `options` has them for each turn."""
        policy = self.retry_policy
        return [self.checkpoint.fingerprint, policy.trim, policy.takes, policy.chunk_chars, self.verified]

    def turn_content(self, turn: Turn, conversation: Conversation | None = None) -> dict[str, Any]:
        """The text and recording of a turn as JSON values; of a recording, the bytes of its file count.

        conversation: that the turn is generated for; None for context, which is spoken as it is written.
        """
        from csm_cli.generation.chunking import spell  # reads scripts, which start-up has no time for

        recording = turn.recording
        return {
            "speaker": turn.speaker,
            "text": turn.text,
            "spelled": spell(turn.text, conversation) if conversation else turn.text,
            "audio": [self._file(recording.path), recording.start, recording.end] if recording else None,
            **(
                {"language": conversation.language}
                if conversation and conversation.language != DEFAULT_LANGUAGE
                else {}
            ),
        }

    def _file(self, path: Path) -> str:
        """An unreadable file has a value of its own; its error is reported where its audio is read."""
        if path not in self._files:
            if len(self._files) >= MAX_CACHED_FILES:
                del self._files[next(iter(self._files))]
            try:
                self._files[path] = fingerprint(path)
            except OSError:
                self._files[path] = "unreadable"
        return self._files[path]
