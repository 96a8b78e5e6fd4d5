"""Errors as clients see them: a status, OpenAI's form, and no path of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from csm_cli.errors import (
    CsmError,
    DeadlineExceeded,
    GenerationFailed,
    InputError,
    OutOfMemory,
    OutputFailed,
    OutputRefused,
    ServerBusy,
    UsageError,
    VoiceInvalid,
    VoiceNotFound,
)
from csm_cli.serve.schema import error_body

_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()]+)+[/\\]?")


class NotFound(InputError):
    """No such object on the server."""


class Conflict(InputError):
    """The object is in use, or exists already."""


class RequestCancelled(CsmError):
    """Another request ended this one, or the server stops."""


@dataclass(frozen=True)
class HttpProblem:
    """A response to a failure."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def public_message(error: CsmError) -> str:
    """The message without folders of this machine: of each path the last part stays."""

    def last_part(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith("/v1/") else re.split(r"[/\\]", match[0].rstrip("/\\"))[-1]

    return _PATH.sub(last_part, str(error))


def problem_of(error: CsmError) -> HttpProblem:
    """The response to an error."""
    message = public_message(error)
    if isinstance(error, ServerBusy):
        headers = {"retry-after": str(error.retry_after)}
        return HttpProblem(503, error_body(message, "server_error", None, "server_busy"), headers)
    if isinstance(error, DeadlineExceeded):
        return HttpProblem(503, error_body(message, "server_error", None, "deadline_exceeded"), {"retry-after": "5"})
    if isinstance(error, RequestCancelled):
        return HttpProblem(503, error_body(message, "server_error", None, "cancelled"), {"retry-after": "1"})
    if isinstance(error, OutOfMemory):
        body = error_body("out of memory; send a shorter text or less context", "server_error", None, "out_of_memory")
        return HttpProblem(503, body, {"retry-after": "5"})
    if isinstance(error, GenerationFailed):
        return HttpProblem(422, error_body(message, "generation_error", None, "generation_failed"))
    if isinstance(error, VoiceNotFound):
        return HttpProblem(404, error_body(message, "invalid_request_error", "voice", "voice_not_found"))
    if isinstance(error, NotFound):
        return HttpProblem(404, error_body(message, "invalid_request_error", None, "not_found"))
    if isinstance(error, Conflict):
        return HttpProblem(409, error_body(message, "invalid_request_error", None, "conflict"))
    if isinstance(error, VoiceInvalid):
        return HttpProblem(409, error_body(message, "invalid_request_error", "voice", "voice_invalid"))
    if isinstance(error, OutputFailed):
        return HttpProblem(507, error_body("the server could not save it", "server_error", None, "storage_failed"))
    if isinstance(error, InputError | UsageError | OutputRefused):
        return HttpProblem(400, error_body(message, "invalid_request_error", _param(message), "invalid_value"))
    return HttpProblem(500, error_body("internal error; see the server's log", "server_error", None, "internal_error"))


def _param(message: str) -> str | None:
    """The field that a message begins with."""
    head = message.partition(":")[0]
    return head if re.fullmatch(r"[a-z_]+(\.\d+)?(\.[a-z_]+)?", head) else None
