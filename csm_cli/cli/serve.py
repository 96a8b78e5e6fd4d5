"""csm serve: an HTTP server with OpenAI's speech endpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from csm_cli.cli.console import configure_logging, emit, log_line
from csm_cli.cli.options import OutputOptions, SynthesisFlags, voice_names
from csm_cli.errors import UsageError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[str, typer.Option("--host", metavar="ADDR", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="CSM_API_KEY",
            show_envvar=False,
            help="Key that clients must send; or in CSM_API_KEY.",
        ),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other hosts without a key.", rich_help_panel="Access")
    ] = False
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A further host name to answer for, such as that of a proxy; repeatable.",
            rich_help_panel="Access",
        ),
    ] = None

    def check(self) -> None:
        """Raises UsageError where other machines could use the server without a key."""
        if self.host not in _LOOPBACK and not self.api_key and not self.insecure:
            raise UsageError(f"--host {self.host} lets other machines in; add --api-key KEY, or --insecure without one")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise UsageError("--api-key takes printable ASCII characters without space around them")

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """Host names to answer for; empty for all, where the key or the user protects the server."""
        if self.host not in _LOOPBACK:
            return ()
        return (*_LOOPBACK, *(self.allow_host or ()))


@dataclass(frozen=True)
class ServerLimits:
    """How much the server does at a time, and for how long."""

    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, max=256, help="Requests decoded together.")
    ] = 16
    max_queue: Annotated[
        int, typer.Option("--max-queue", metavar="N", min=0, max=100_000, help="Requests that may wait; then 503.")
    ] = 64
    deadline: Annotated[
        float,
        typer.Option("--deadline", metavar="SEC", min=0.1, help="Longest time of a request.", rich_help_panel="Limits"),
    ] = 300.0
    conversations: Annotated[
        int,
        typer.Option(
            "--conversations", metavar="N", min=1, max=100_000, help="Conversations held.", rich_help_panel="Limits"
        ),
    ] = 64
    conversation_ttl: Annotated[
        float,
        typer.Option(
            "--conversation-ttl",
            metavar="SEC",
            min=1,
            help="Unused conversations are dropped after this time.",
            rich_help_panel="Limits",
        ),
    ] = 3600.0


def serve(
    voice: Annotated[
        str | None,
        typer.Option(
            "-v", "--voice", metavar="NAME", help="Voice of requests without one.", autocompletion=voice_names
        ),
    ] = None,
    *,
    listen_options: ListenOptions,
    limits: ServerLimits,
    speech: SynthesisFlags,
    output_options: OutputOptions,
) -> None:
    """Serve speech over HTTP, as OpenAI's speech endpoint does, many requests at a time.

    Example:
      csm serve --port 8000
    """
    listen_options.check()
    if speech.verify:
        raise UsageError("--verify is not served; transcribe the audio in the client")
    try:
        from csm_cli.serve.app import create_app
        from csm_cli.serve.server import listen, run_server
    except ImportError as problem:
        raise UsageError(f"csm serve needs {problem.name}: pip install 'csm-cli[serve]'") from problem
    from csm_cli.cli.synthesis import SynthesisJob, open_synthesizer
    from csm_cli.generation.normalization import check_normalizer
    from csm_cli.serve.context import ServeSettings
    from csm_cli.serve.service import SpeechService
    from csm_cli.serve.voices import resolve_voice

    if voice:
        resolve_voice(voice)
    if speech.normalize:
        check_normalizer(speech.language)
    lexicon = speech.lexicon_entries  # read before anything is loaded
    bound = listen(listen_options.host, listen_options.port)
    flags = speech.flags.over(speech.configuration.generation)
    job = SynthesisJob([], flags, speech, output_options, limits.batch_size, speech.retry_policy)
    configure_logging(output_options)
    service = SpeechService(open_synthesizer(job), limits.max_queue)
    settings = ServeSettings(
        flags,
        job.retry_policy,
        limits.deadline,
        voice,
        listen_options.api_key,
        listen_options.allowed_hosts,
        speech.language,
        speech.normalize,
        limits.conversations,
        limits.conversation_ttl,
        lexicon=lexicon,
    )
    host = f"[{listen_options.host}]" if ":" in listen_options.host else listen_options.host
    url = f"http://{host}:{bound.getsockname()[1]}"

    def announce() -> None:
        if output_options.json:
            from csm_cli.cli.console import emit_json

            emit_json({"url": url, "pid": os.getpid()})
        elif output_options.quiet:
            emit(url)
        else:
            log_line(f"serving on {url}; Ctrl-C stops")

    service.start()
    code = run_server(create_app(service, settings), service, bound, announce)
    if code:
        raise typer.Exit(code)
