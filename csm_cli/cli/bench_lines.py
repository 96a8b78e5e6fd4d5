"""csm bench lines: what a batch costs besides decoding."""

from __future__ import annotations

import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_cli.cli.batch import BatchRequest, BatchScope, run_batch
from csm_cli.cli.bench_speed import print_figures
from csm_cli.cli.options import OutputFile, OutputOptions, SynthesisFlags

if TYPE_CHECKING:
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.synthesis import SynthesisJob
    from csm_cli.generation.synthesizer import Synthesizer


def lines(
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Lines of the manifest.")] = 10_000,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where it is written and removed again.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
) -> None:
    """Time and memory of a batch whose lines a stub speaks at once: reading, checking, writing, recording."""
    from csm_cli.bench.batch_overhead import measure

    with tempfile.TemporaryDirectory(dir=folder) as place:
        figures = measure(count, Path(place), _speak)
    print_figures(figures, json)


def _speak(manifest: Path) -> None:
    output = OutputFile(str(manifest.with_suffix("") / "{id}.wav"))
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        run_batch(
            BatchRequest(str(manifest), "8", BatchScope(), SynthesisFlags(), output, OutputOptions(quiet=True)),
            _stub,
        )


def _stub(job: SynthesisJob, checkpoint: Checkpoint) -> Synthesizer:
    from csm_cli.bench.batch_overhead import StubSynthesizer

    return StubSynthesizer(checkpoint)
