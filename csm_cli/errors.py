"""Every failure a user can meet, and the exit code it ends with.

CsmError                      1  generation failed
├── GenerationFailed          1  a take is empty or unusable
├── OutputFailed              1  a file could not be written to the end
├── TrainingFailed            1  a loss that is not finite
│   └── PeerLost              1  another process of the same training has ended
├── UsageError                2  flags that contradict each other or hold an impossible value, or a missing library
│   ├── OutputRefused         2  the output is a directory, exists, or cannot be created
│   ├── ConfigInvalid         2  a configuration file cannot be read, or holds what there is not
│   └── SoundDeviceMissing    2  nothing to play on
├── InputError                3  a text, script or audio file is missing, unreadable or invalid
│   ├── ScriptInvalid         3  every diagnostic about a script at once
│   │   ├── NotReady          3  the same where only that was asked for
│   │   └── SettingsInvalid   3  the same about the settings of a training
│   ├── AudioUnreadable       3
│   ├── NothingToLearn        3  a dataset of which nothing can be learned
│   └── PromptTooLong         3  text and context do not fit the model's window
├── ModelError                4
│   ├── ModelNotFound         4  nothing there by that name
│   ├── ModelGated            4  a licence has to be accepted first
│   ├── ModelOffline          4  no network and nothing cached
│   ├── CheckpointInvalid     4  tensors or config that do not make a CSM
│   ├── VoiceNotFound         4  no voice of that name
│   └── VoiceInvalid          4  a saved voice whose files cannot be used
├── BatchPartlyFailed         5  some items were written, some failed
└── DeviceError               6
    ├── DeviceMissing         6  a known device this machine lacks
    └── OutOfMemory           6

An interrupt (Ctrl-C) ends with INTERRUPTED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INTERRUPTED = 130
MAX_DIAGNOSTICS_SHOWN = 200


class CsmError(Exception):
    """A failure with an exit code; its message is one line that says what to do."""

    code = 1


class GenerationFailed(CsmError):
    pass


class OutputFailed(CsmError):
    pass


class TrainingFailed(CsmError):
    pass


class PeerLost(TrainingFailed):
    pass


class UsageError(CsmError):
    code = 2


class OutputRefused(UsageError):
    pass


class ConfigInvalid(UsageError):
    pass


class SoundDeviceMissing(UsageError):
    pass


class InputError(CsmError):
    code = 3


class AudioUnreadable(InputError):
    pass


class NothingToLearn(InputError):
    def __init__(self) -> None:
        why = "every clip was left out for the reasons told, or is context, which is heard, not learned"
        super().__init__(f"nothing is left to learn from: {why}")


class PromptTooLong(InputError):
    pass


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One thing wrong with an input: where, at which path inside it, and what was expected.

    `line` and `column` count from 1; 0 means the whole file.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    @property
    def location(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class ScriptInvalid(InputError):
    """All diagnostics about a script or manifest, sorted by place; of very many the first.

    count: how many there are; those given, where it is None.
    """

    outcome = "nothing was generated"

    def __init__(self, diagnostics: Sequence[Diagnostic], count: int | None = None) -> None:
        self.diagnostics = tuple(sorted(diagnostics)[:MAX_DIAGNOSTICS_SHOWN])
        self.count = len(diagnostics) if count is None else count
        first = f", the first {len(self.diagnostics)} are above" if self.count > len(self.diagnostics) else ""
        super().__init__(f"{self.count} error{'s' if self.count != 1 else ''}{first}; {self.outcome}")


class NotReady(ScriptInvalid):
    """All diagnostics that `csm check` has."""

    outcome = "validation failed"


class SettingsInvalid(ScriptInvalid):
    """All diagnostics about the settings of a training."""

    outcome = "nothing was trained"


class ModelError(CsmError):
    code = 4


class ModelNotFound(ModelError):
    pass


class ModelGated(ModelError):
    pass


class ModelOffline(ModelError):
    pass


class CheckpointInvalid(ModelError):
    pass


class VoiceNotFound(ModelError):
    pass


class VoiceInvalid(ModelError):
    pass


class BatchPartlyFailed(CsmError):
    code = 5


class DeviceError(CsmError):
    code = 6


class DeviceMissing(DeviceError):
    pass


class OutOfMemory(DeviceError):
    pass
