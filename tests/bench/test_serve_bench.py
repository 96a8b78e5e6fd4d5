"""`csm bench serve`: what its clients see, and a whole run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from helpers.run import Result
from helpers.serving import running_server

from csm_cli.bench.load import Line, SpeechServer, disconnect_figures, load_figures, overload_figures, started_server
from csm_cli.checkpoint import open_checkpoint
from csm_cli.errors import CsmError
from csm_cli.generation.synthesizer import Synthesizer

Csm = Callable[..., Result]
LINES = [Line(f"Line number {number}.", number) for number in range(1, 41)]


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[SpeechServer]:
    synth = Synthesizer(open_checkpoint(str(tiny_checkpoint)), torch.device("cpu"), torch.float32, slots=2)
    with running_server(synth, max_queue=2) as running:
        address = urlsplit(running.url)
        yield SpeechServer(address.hostname or "", address.port or 0, os.getpid())


def test_a_load_counts_the_audio_that_clients_got(server: SpeechServer) -> None:
    figures = load_figures(server, 2, LINES[:6])
    assert figures["requests"] == 6 and figures["failed"] == 0
    assert 0 < figures["first_audio_p50"] <= figures["first_audio_p95"]
    assert figures["audio_s_per_s"] > 0 and figures["server_mb"] > 100


def test_an_overload_counts_what_was_refused(server: SpeechServer) -> None:
    figures = overload_figures(server, 16, LINES[:16])
    assert figures["overload_other"] == 0 and figures["overload_refused_503"] > 0
    assert figures["overload_answered"] + figures["overload_refused_503"] == 16
    assert (
        figures["overload_accepted_at_once"] <= figures["overload_limit"] + 2 == 6
    )  # a request may start between two counters


def test_clients_that_leave_take_no_slot_with_them(server: SpeechServer) -> None:
    figures = disconnect_figures(server, 2, LINES)
    assert figures["disconnects_requests"] == 40 and figures["disconnects_slots_lost"] == 0
    assert server.speak(LINES[0]).status == 200


def test_a_server_that_cannot_start_says_why() -> None:
    arguments = ["csm_cli", "serve", "--json", "--port", "0", "--model", "./none"]
    with pytest.raises(CsmError, match="none"), started_server(arguments):
        pass


def test_clients_are_numbers(csm: Csm) -> None:
    result = csm("bench", "serve", "--clients", "1,x")
    assert result.code == 2 and "--clients" in result.err


@pytest.mark.slow
def test_a_whole_run_compares_three_ways_of_speaking(csm: Csm) -> None:
    options = "--clients", "1,2", "--per-client", 1, "--batch-size", 2, "--max-queue", 1, "--disconnects", 8
    figures = csm("bench", "serve", *options, "--json").json
    assert figures["served_of_batch"] > 0 and figures["disconnects_slots_lost"] == figures["overload_other"] == 0
    assert [(row["server"], row["clients"]) for row in figures["loads"]] == [
        ("csm serve", 1),
        ("csm serve", 2),
        ("transformers behind a lock", 1),
        ("transformers behind a lock", 2),
    ]
