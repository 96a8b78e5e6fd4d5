"""The HTTP application: its routes, its errors, health and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from csm_cli import __version__
from csm_cli.errors import CsmError, InputError, OutputRefused, failure_of
from csm_cli.serve.context import MODEL_ALIASES, ServerContext, ServeSettings
from csm_cli.serve.conversation_routes import conversation_routes, turn_routes
from csm_cli.serve.conversations import ConversationStore
from csm_cli.serve.problems import Conflict, HttpProblem, NotFound, problem_of
from csm_cli.serve.schema import describe_validation, error_body
from csm_cli.serve.security import Gate
from csm_cli.serve.service import SpeechService
from csm_cli.serve.speech import speech_routes
from csm_cli.serve.speech_socket import socket_routes
from csm_cli.serve.studio.routes import studio_routes
from csm_cli.serve.voices import ClipEncoder, check_text, save_upload, voice_choices, voice_record
from csm_cli.voices.store import find_voice, is_name, list_voices, remove_voice

log = logging.getLogger(__name__)

_EXPIRY_SECONDS = 30  # between two looks at conversations that expire


def create_app(service: SpeechService, settings: ServeSettings) -> FastAPI:
    """The application over a service, which it stops when it is shut down."""
    context = ServerContext(service, settings, ClipEncoder(service.synth))
    store = ConversationStore(settings.max_conversations, settings.conversation_ttl)
    service.metrics.watch_conversations(lambda: len(store), lambda: store.seconds)

    async def drop_expired() -> None:
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            store.drop_expired()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(drop_expired())
        yield
        expiry.cancel()
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="csm serve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={400: {"description": "The request is invalid."}, 503: {"description": "The server is busy."}},
    )
    app.add_middleware(Gate, api_key=settings.api_key, allowed_hosts=settings.allowed_hosts)
    _add_errors(app)
    app.include_router(studio_routes())
    app.include_router(_status_routes(context))
    app.include_router(_list_routes(context))
    app.include_router(_voice_routes(context))
    app.include_router(speech_routes(context))
    app.include_router(conversation_routes(context, store))
    app.include_router(turn_routes(context, store))
    app.include_router(socket_routes(context))
    return app


def _add_errors(app: FastAPI) -> None:
    def respond(problem: HttpProblem) -> JSONResponse:
        return JSONResponse(problem.body, problem.status, problem.headers)

    @app.exception_handler(CsmError)
    async def expected(request: Request, error: CsmError) -> Response:
        problem = problem_of(error)
        if problem.status == 500:
            log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error.__cause__ or error)
        return respond(problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = describe_validation(list(error.errors()))
        return respond(HttpProblem(400, error_body(message, "invalid_request_error", param, "invalid_value")))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        body = error_body(
            str(error.detail), "invalid_request_error", None, "not_found" if error.status_code == 404 else None
        )
        return respond(HttpProblem(error.status_code, body, dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return await expected(request, failure_of(error))


def _status_routes(context: ServerContext) -> APIRouter:
    router, service = APIRouter(tags=["status"]), context.service

    @router.get("/health", response_class=PlainTextResponse)
    def health() -> str:
        """OK as long as the server runs."""
        return "OK"

    @router.get("/livez", response_class=PlainTextResponse)
    def livez() -> PlainTextResponse:
        """OK as long as the decode thread runs."""
        return PlainTextResponse(
            "OK" if service.alive else "the decode thread has ended", 200 if service.alive else 503
        )

    @router.get("/readyz", response_class=PlainTextResponse)
    def readyz() -> PlainTextResponse:
        """OK when the model is loaded and warm, until the server stops."""
        if service.ready and service.alive and not service.draining:
            return PlainTextResponse("OK")
        return PlainTextResponse("stopping" if service.draining else "loading", 503, {"retry-after": "1"})

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def _list_routes(context: ServerContext) -> APIRouter:
    router, created = APIRouter(tags=["models"]), int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "csm-cli"}

    def names() -> list[str]:
        return list(dict.fromkeys((context.model_name, *MODEL_ALIASES)))

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        """The loaded model, under its own name and under those that OpenAI's clients know."""
        return {"object": "list", "data": [model(name) for name in names()]}

    @router.get("/v1/audio/models")
    def audio_models() -> dict[str, Any]:
        """As Kokoro-FastAPI and Open WebUI have it."""
        return {
            "models": [{"id": name, "name": name} for name in names()],
            "object": "list",
            "data": [model(n) for n in names()],
        }

    @router.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict[str, Any]:
        """One model, with its voices as Speaches lists them."""
        if name not in names():
            raise NotFound(f"model: there is only {context.model_name!r} here")
        rate = context.synth.codec.rate
        return model(name) | {"task": "text-to-speech", "sample_rate": rate, "voices": voice_choices()}

    return router


def _voice_routes(context: ServerContext) -> APIRouter:
    router = APIRouter(tags=["voices"])

    @router.get("/v1/audio/voices")
    def voices() -> dict[str, Any]:
        """Saved voices, and OpenAI's names as aliases."""
        records = [voice_record(each) for each in list_voices()]
        return {"voices": voice_choices(), "object": "list", "data": records, "default": context.settings.voice}

    @router.post("/v1/audio/voices", status_code=201)
    async def add(
        name: Annotated[str, Form()],
        text: Annotated[str, Form()],
        consent: Annotated[str, Form()],
        audio: UploadFile,
    ) -> dict[str, Any]:
        """Saves a clip as a voice. consent: who agreed to its use, and to what; it is saved with the voice."""
        if not consent.strip():
            raise InputError("consent: say who agreed to the use of this voice")
        spoken = " ".join(check_text("text", text).split())
        consent_text = check_text("consent", consent)
        data = await audio.read()

        def save() -> dict[str, Any]:
            clip = context.clips.read("audio", data)
            try:
                voice, warnings = save_upload(name, clip, spoken, consent_text)
            except OutputRefused as error:
                raise (Conflict if is_name(name) else InputError)(f"name: {error}") from error
            return voice_record(voice) | {"warnings": warnings}

        return await run_in_threadpool(save)

    @router.delete("/v1/audio/voices/{name}")
    def delete(name: str) -> dict[str, Any]:
        """Removes a saved voice; bundled ones stay."""
        find_voice(name)
        try:
            remove_voice(name)
        except OutputRefused as error:
            raise Conflict(f"name: {error}") from error
        return {"id": name, "object": "voice", "deleted": True}

    return router
