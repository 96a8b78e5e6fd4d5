"""csm-cli: text to speech with Sesame's Conversational Speech Model (CSM), from the command line and from Python.

    import csm_cli

    model = csm_cli.load()
    model.say("Good morning.", voice="ash", seed=1).save("morning.wav")

Importing this package is cheap; `load` imports PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from csm_cli.device import set_mkl_rounding

if TYPE_CHECKING:
    from csm_cli.api import Model, Speech, load, mix
    from csm_cli.errors import (
        AudioUnreadable,
        CheckpointInvalid,
        CsmError,
        DeviceError,
        GenerationFailed,
        InputError,
        ModelError,
        ModelNotFound,
        OutputFailed,
        OutputRefused,
        PromptTooLong,
        ScriptInvalid,
        UsageError,
        VoiceNotFound,
    )
    from csm_cli.types import Conversation, Recording, Turn

__version__ = "0.1.0"

set_mkl_rounding()  # before anything multiplies: MKL reads the environment at its first call

__all__ = [
    "AudioUnreadable",
    "CheckpointInvalid",
    "Conversation",
    "CsmError",
    "DeviceError",
    "GenerationFailed",
    "InputError",
    "Model",
    "ModelError",
    "ModelNotFound",
    "OutputFailed",
    "OutputRefused",
    "PromptTooLong",
    "Recording",
    "ScriptInvalid",
    "Speech",
    "Turn",
    "UsageError",
    "VoiceNotFound",
    "__version__",
    "load",
    "mix",
]

_MODULES = {"Conversation": "types", "Recording": "types", "Turn": "types"}
_MODULES |= dict.fromkeys(("Model", "Speech", "load", "mix"), "api")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"csm_cli.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
