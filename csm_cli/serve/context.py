"""What the server was started with, and what its routes share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csm_cli.errors import InputError
from csm_cli.generation.conversation import ConversationState, ResolvedDefaults
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.serve.service import SpeechService
from csm_cli.serve.voices import ClipEncoder
from csm_cli.types import DEFAULT_LANGUAGE, GenerationOptions, RetryPolicy

MODEL_ALIASES = ("csm", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")

Prepare = Callable[[Synthesizer], ConversationState]


@dataclass(frozen=True, eq=False)
class ServeSettings:
    """What the server was started with.

    flags, policy, language, normalize, lexicon: options of its command line. deadline: seconds per request.
    conversation_ttl: seconds after which an unused conversation is dropped.
    """

    flags: GenerationOptions
    policy: RetryPolicy
    deadline: float
    voice: str | None = None
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    language: str = DEFAULT_LANGUAGE
    normalize: bool = False
    max_conversations: int = 64
    conversation_ttl: float = 3600.0
    lexicon: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ServerContext:
    """What the routes share."""

    service: SpeechService
    settings: ServeSettings
    clips: ClipEncoder

    @property
    def synth(self) -> Synthesizer:
        return self.service.synth

    @property
    def model_name(self) -> str:
        """The checkpoint without the folders of a local path."""
        name = self.synth.checkpoint.name
        return name if self.synth.checkpoint.revision else Path(name).name.replace(" ", "-")

    def policy(self, stream: bool) -> RetryPolicy:
        """Whole files are retried as in the commands; a stream has one take that is trimmed as it goes."""
        policy = self.settings.policy
        if not stream:
            return policy
        return RetryPolicy(policy.trim, policy.max_retries, chunk_chars=policy.chunk_chars, stream=True)

    def defaults(self, options: GenerationOptions, stream: bool) -> ResolvedDefaults:
        """The options of a request over those of the server."""
        merged = options.over(self.settings.flags)
        return ResolvedDefaults(merged, self.synth.checkpoint.defaults, self.policy(stream))

    def model(self, name: str) -> None:
        """Raises InputError if a client asks for another model; nothing is looked up by that name."""
        if name not in (*MODEL_ALIASES, self.model_name):
            raise InputError(f"model: there is only {self.model_name!r} here, also as {', '.join(MODEL_ALIASES)}")


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
