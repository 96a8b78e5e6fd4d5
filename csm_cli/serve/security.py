"""Who may call, and how much they may send: pure ASGI, so that streams and disconnects pass unchanged."""

from __future__ import annotations

import hmac
import json
import secrets
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csm_cli.serve.limits import MAX_BODY_BYTES
from csm_cli.serve.schema import error_body

_OPEN = frozenset({"/health", "/livez", "/readyz", "/"})  # nothing to steal: probes and the studio's page have no key
_OPEN_FILES = "/studio/"  # of that page
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Gate:
    """Refuses requests without the key, from pages of other sites, for other hosts, or with a body that is too large.

    Other sites: a browser sends simple requests and opens WebSockets for any page, whether or not the page may read
    the answer. Other hosts: a page could have its own name resolved to this machine.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, allowed_hosts: tuple[str, ...]) -> None:
        self._app, self._key, self._hosts = app, (api_key or "").encode(), allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if scope["type"] == "http":
            send = _with_request_id(send)
        if refusal is None:
            await self._app(scope, _limited(receive) if scope["type"] == "http" else receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await _send_error(send, *refusal)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Status, message and code; None if the request may pass."""
        host = urlsplit(f"//{headers.get('host', '')}")
        if self._hosts and (host.hostname or "") not in self._hosts:
            return 403, "this server does not answer for that host name", "host_refused"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host.netloc:
            return 403, "pages of other sites may not use this server", "origin_refused"
        if self._key and path not in _OPEN and not path.startswith(_OPEN_FILES):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                return 401, "give the server's key as `Authorization: Bearer KEY`", "invalid_api_key"
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            return 413, f"the body has more than {MAX_BODY_BYTES:,} bytes", "body_too_large"
        return None


class BodyTooLarge(HTTPException):
    """A body without a length turned out too large."""

    def __init__(self) -> None:
        super().__init__(413, f"the body has more than {MAX_BODY_BYTES:,} bytes", {"connection": "close"})


def _limited(receive: Receive) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise BodyTooLarge
        return message

    return limited


def _with_request_id(send: Send) -> Send:
    """Names each response, as OpenAI's clients expect in their logs."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", f"req_{secrets.token_hex(8)}".encode())]
        await send(message)

    return named


async def _send_error(send: Send, status: int, message: str, code: str) -> None:
    body = json.dumps(error_body(message, "invalid_request_error", None, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
