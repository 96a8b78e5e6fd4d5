"""Exceptions for every expected failure, and the exit code of each.

CsmError                      1  generation failed
├── GenerationFailed          1  no usable take, or an empty one
│   └── DeadlineExceeded      1  a request to the server took longer than its deadline
├── WorkerLost                1  worker processes of a batch died again and again
├── ServerBusy                1  the server's queue is full, or it is stopping
├── OutputFailed              1  a file could not be written completely
├── TrainingFailed            1  the loss is not finite
│   └── PeerLost              1  another process of the same training has ended
├── UsageError                2  contradictory or invalid options, or a missing library
│   ├── OutputRefused         2  the output is a directory, exists, or cannot be created
│   ├── ConfigInvalid         2  a configuration file is unreadable or has unknown or invalid values
│   └── SoundDeviceMissing    2  no device for playback
├── InputError                3  a text, script or audio file is missing, unreadable or invalid
│   ├── ScriptInvalid         3  all diagnostics of scripts or manifests
│   │   ├── NotReady          3  the same, from `csm check`
│   │   └── SettingsInvalid   3  the same, of training settings
│   ├── AudioUnreadable       3
│   ├── NothingToLearn        3  a dataset without trainable clips
│   └── PromptTooLong         3  text and context do not fit into the context window
├── ModelError                4
│   ├── ModelNotFound         4  no model of that name
│   ├── ModelGated            4  its licence has to be accepted first
│   ├── ModelOffline          4  no network, and not cached
│   ├── CheckpointInvalid     4  config or tensors are not those of a CSM
│   ├── VoiceNotFound         4  no saved voice of that name
│   └── VoiceInvalid          4  a saved voice with missing or invalid files
├── BatchPartlyFailed         5  some items were written, some failed
└── DeviceError               6
    ├── DeviceMissing         6  not on this machine
    └── OutOfMemory           6

An interrupt (Ctrl-C) exits with INTERRUPTED.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass

INTERRUPTED = 130
MAX_DIAGNOSTICS_SHOWN = 200


class CsmError(Exception):
    """An expected failure. code: exit code of the process; the message is one line that says what to do.

    kind: name of the class of the exception that it stands for (see `failure_of`), else of its own class.
    """

    code = 1
    _kind = ""

    @property
    def kind(self) -> str:
        return self._kind or type(self).__name__


class GenerationFailed(CsmError):
    pass


class DeadlineExceeded(GenerationFailed):
    pass


class ServerBusy(CsmError):
    """retry_after: seconds after which another try can succeed."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class OutputFailed(CsmError):
    pass


class WorkerLost(CsmError):
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
        super().__init__("no trainable clips: everything was filtered out or is context only")


class PromptTooLong(InputError):
    pass


@dataclass(frozen=True, order=True)
class Diagnostic:
    """A problem in an input file. path: of the field, as `turns[2].text`; line, column: from 1, or 0 for the file."""

    file: str
    line: int
    column: int
    path: str
    message: str

    @property
    def location(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class ScriptInvalid(InputError):
    """All diagnostics of a script or manifest, sorted by location. Of very many, the first are kept.

    They are also notes of the exception, so that a traceback shows them. count: how many there are; None: as many as
    `diagnostics`.
    """

    outcome = "nothing was generated"

    def __init__(self, diagnostics: Sequence[Diagnostic], count: int | None = None) -> None:
        self.diagnostics = tuple(sorted(diagnostics)[:MAX_DIAGNOSTICS_SHOWN])
        self.count = len(diagnostics) if count is None else count
        first = f", the first {len(self.diagnostics)} are above" if self.count > len(self.diagnostics) else ""
        super().__init__(f"{self.count} error{'s' if self.count != 1 else ''}{first}; {self.outcome}")
        for each in self.diagnostics:
            self.add_note(": ".join(filter(None, (each.location, each.path, each.message))))


class NotReady(ScriptInvalid):
    """All diagnostics found by `csm check`."""

    outcome = "validation failed"


class SettingsInvalid(ScriptInvalid):
    """All diagnostics of training settings."""

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


# torch's own class; the messages of its allocators on CPU, CUDA and MPS, and of cuBLAS and cuDNN
_NO_MEMORY = re.compile(r"OutOfMemoryError|out of memory|ALLOC_FAILED|can't allocate")


def failure_of(problem: BaseException, isolate_stops: bool = False) -> CsmError:
    """Any exception as one of this program's errors, with the exception as its cause; an interrupt is raised again.

    isolate_stops: not even an interrupt; for a thread that serves many.
    """
    if is_stop(problem) and not isolate_stops:
        raise problem
    if isinstance(problem, CsmError):
        return problem
    failure: CsmError
    if isinstance(problem, MemoryError) or _NO_MEMORY.search(f"{type(problem).__name__}: {problem}"):
        failure = OutOfMemory("out of memory; use a smaller --batch-size, shorter context or another --device")
    elif isinstance(problem, OSError):
        place = f"{problem.filename}: " if problem.filename else ""
        hint = "; free some space and run again" if problem.errno == errno.ENOSPC else ""
        failure = OutputFailed(f"{place}{problem.strerror or problem}{hint}")
    else:
        text = " ".join(str(problem).split())[:500]
        hint = "run again with --debug and report the traceback"
        failure = CsmError(f"unexpected {type(problem).__name__}: {text}; {hint}")
    failure.__cause__, failure._kind = problem, type(problem).__name__
    return failure


def is_stop(problem: BaseException) -> bool:
    """Whether an exception ends the program, and is not the failure of one item; panics of Rust are failures."""
    return isinstance(problem, KeyboardInterrupt | SystemExit | GeneratorExit)
