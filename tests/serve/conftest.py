"""A server with a tiny random model, shared by the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.serving import RunningServer, running_server

from csm_cli.checkpoint import open_checkpoint
from csm_cli.generation.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def synth(tiny_checkpoint: Path) -> Synthesizer:
    return Synthesizer(open_checkpoint(str(tiny_checkpoint)), torch.device("cpu"), torch.float32, slots=4)


@pytest.fixture(scope="module")
def server(synth: Synthesizer) -> Iterator[RunningServer]:
    with running_server(synth) as running:
        yield running
