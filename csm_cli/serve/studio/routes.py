"""Serves the page at `/` and its files below `/studio/`. They hold no data, so that they need no key."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from csm_cli.serve.problems import NotFound

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "media-src blob:",  # a recording before it is sent
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def studio_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of the page's files, by name."""
    found = {}
    for file in files(__package__).iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            found[file.name] = file.read_bytes(), _MEDIA_TYPES[suffix]
    return found


def studio_routes() -> APIRouter:
    """The page and its files."""
    router, contents = APIRouter(include_in_schema=False), studio_files()

    def respond(name: str) -> Response:
        if name not in contents:
            raise NotFound("studio: there is no such file")
        data, media_type = contents[name]
        return Response(data, media_type=media_type, headers=_HEADERS)

    @router.get("/")
    async def page() -> Response:
        return respond("page.html")

    @router.get("/studio/{name}")
    async def file(name: str) -> Response:
        return respond(name)

    return router
