"""csm bench: speed, start-up, batch overhead, voice quality and training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.batch import BatchScope, run_batch
from csm_cli.cli.batch_workers import WorkerOptions
from csm_cli.cli.console import configure_logging, emit_json, log_line
from csm_cli.cli.options import ManifestOptions, OutputFile, OutputOptions, SynthesisFlags
from csm_cli.cli.synthesis import open_synthesizer
from csm_cli.errors import UsageError
from csm_cli.report import format_count
from csm_cli.settings import setting

if TYPE_CHECKING:
    from csm_cli.bench.timing import BenchModel, Workload
    from csm_cli.checkpoint import Checkpoint
    from csm_cli.cli.synthesis import SynthesisJob
    from csm_cli.generation.synthesizer import Synthesizer

Model = Annotated[str | None, setting("model", help="The bundled voice if not given.", panel=None)]
Device = Annotated[str, setting("device", panel=None)]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON line and nothing else.")]

bench = typer.Typer(name="bench", help="Benchmarks.", no_args_is_help=True)


@dataclass(frozen=True)
class SpeedOptions:
    """What is decoded, and how."""

    model: Annotated[
        str | None,
        setting(
            "model",
            help="The bundled voice if not given; csm-1b-random: csm-1b's shapes with random weights.",
            panel=None,
        ),
    ] = None
    device: Device = "auto"
    dtype: Annotated[str, setting("dtype", panel=None)] = "auto"
    context: Annotated[int, typer.Option(metavar="N", min=1, help="Positions before the first frame.")] = 100
    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames decoded on each side.")] = 60
    quantize: Annotated[str, setting("quantize", panel=None)] = "none"
    compile: Annotated[bool, setting("compile", panel=None)] = False
    json: Json = False


def decode(
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows decoded together.")] = 1, *, options: SpeedOptions
) -> None:
    """Decode speed compared with transformers' generate on the same weights, and with the memory roofline."""
    from csm_cli.bench.speed import measure_decode

    log = _logger(options.json)
    _speed(options, batch, lambda model, workload: measure_decode(model, workload, log, options.compile))


def batch(
    size: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows decoded together.")] = 16,
    *,
    options: SpeedOptions,
) -> None:
    """Audio per second of a batch compared with a single row."""
    from csm_cli.bench.speed import measure_batch

    _speed(options, size, lambda model, workload: measure_batch(model, workload, options.compile))


def context(
    long_context: Annotated[
        int, typer.Option(metavar="N", min=1, help="Positions before the first frame on the other side.")
    ] = 1900,
    *,
    options: SpeedOptions,
) -> None:
    """How decode time scales with context length."""
    from csm_cli.bench.speed import measure_context

    _speed(options, 1, lambda model, workload: measure_context(model, workload, long_context, options.compile))


def _speed(options: SpeedOptions, rows: int, measure: Callable[[BenchModel, Workload], dict[str, Any]]) -> None:
    """Loads and perhaps quantizes the model, measures, and prints the figures."""
    from csm_cli.bench.random_checkpoint import open_for_bench
    from csm_cli.bench.speed import quantize_and_compare
    from csm_cli.bench.timing import BenchModel, Workload
    from csm_cli.device import pick_device, pick_dtype

    _logger(options.json)(f"loading {options.model or 'the bundled voice'} ...")
    device = pick_device(options.device)
    model = BenchModel(open_for_bench(options.model), device, pick_dtype(options.dtype, device))
    comparison = quantize_and_compare(model, options.frames) if options.quantize == "int8" else {}
    figures = measure(model, Workload(rows, options.context, options.frames))
    settings = {"quantize": options.quantize, "compile": options.compile}
    _print_figures({**figures, **settings, **comparison}, options.json)


def start(
    model: Model = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Cold processes of each kind.")] = 3,
    json: Json = False,
) -> None:
    """Time of `csm say` in a cold process, compared with importing torch and decoding alone."""
    from csm_cli.bench.commands import measure_start

    _logger(json)(f"starting {runs} processes of each kind ...")
    _print_figures(measure_start(model, runs), json)


def serve(
    model: Model = None,
    device: Device = "auto",
    clients: Annotated[
        str, typer.Option(metavar="N,N,...", help="Clients at a time, one load after the other.")
    ] = "1,4,16,64",
    per_client: Annotated[int, typer.Option(metavar="N", min=1, help="Lines that each client sends.")] = 4,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Slots of the server.")] = 16,
    max_queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that may wait.")] = 64,
    disconnects: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests most of whose clients leave early.")
    ] = 1000,
    json: Json = False,
) -> None:
    """Time to first audio and throughput of `csm serve` under load, beside `csm batch` and transformers behind a lock.

    Needs the extra csm-cli\\[serve].
    """
    from csm_cli.bench.serve import ServeWorkload, measure_serve

    counts = [each.strip() for each in clients.split(",")]
    if not all(each.isascii() and each.isdigit() and int(each) for each in counts):
        raise UsageError("--clients takes numbers such as 1,4,16")
    log = _logger(json)
    loaded: list[Synthesizer] = []

    def run_manifest(manifest: Path) -> None:
        quiet, speech = OutputOptions(quiet=True), SynthesisFlags(model=model, device=device)
        arguments = (str(manifest), ManifestOptions()), str(batch_size), BatchScope(), speech
        output = OutputFile(str(manifest.with_suffix("") / "{id}.wav"))
        with Path(os.devnull).open("w") as null, redirect_stdout(null):
            run_batch(*arguments, output, quiet, load=load)

    def load(job: SynthesisJob, checkpoint: Checkpoint) -> Synthesizer:
        if not loaded:
            loaded.append(open_synthesizer(job, checkpoint))
        return loaded[0]

    workload = ServeWorkload(tuple(map(int, counts)), per_client, batch_size, max_queue, disconnects)
    figures, rows = measure_serve(model, device, workload, run_manifest, log)
    for row in rows:
        count = format_count(row["clients"], "client")
        log(
            f"{row['server']}, {count}: {row['audio_s_per_s']:.1f} s of audio a second; first audio after"
            f" {row['first_audio_p50']:.2f} s (p95 {row['first_audio_p95']:.2f} s); {row['streams_with_underruns']} of"
            f" {row['requests']} streams ran dry; {row['server_mb']:.0f} MB"
        )
    _print_figures(figures, json, loads=[_rounded(row) for row in rows])


def batch_overhead(
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Items of the manifest.")] = 10_000,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where temporary files are written.")] = None,
    json: Json = False,
) -> None:
    """Time and memory per item of `csm batch` without a model: reading, validating, writing, recording."""
    from csm_cli.bench.commands import StubSynthesizer, measure_batch_overhead

    def run_manifest(manifest: Path) -> None:
        output = OutputFile(str(manifest.with_suffix("") / "{id}.wav"))
        quiet = OutputOptions(quiet=True)
        with Path(os.devnull).open("w") as null, redirect_stdout(null):
            run_batch(
                (str(manifest), ManifestOptions()), "8", BatchScope(), SynthesisFlags(), output, quiet, load=make_stub
            )

    def make_stub(job: SynthesisJob, checkpoint: Checkpoint) -> Synthesizer:
        return StubSynthesizer(checkpoint)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        figures = measure_batch_overhead(count, Path(temporary), run_manifest)
    _print_figures(figures, json)


def workers(
    count: Annotated[int, typer.Option("--workers", metavar="N", min=1, max=1024, help="Simulated workers.")] = 64,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Slots of each.")] = 16,
    lines: Annotated[int, typer.Option(metavar="N", min=1, help="Lines of the manifest.")] = 100_000,
    device: Annotated[
        str,
        typer.Option(
            metavar="cpu|h200",
            help="Whose measured decode steps workers take: the bundled voice's on a core, csm-1b's.",
        ),
    ] = "cpu",
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where temporary files are written.")] = None,
    json: Json = False,
) -> None:
    """How a batch scales to many workers, and what its parent takes: workers are simulated, the parent is real."""
    from csm_cli.bench.workers import STEP_TIMES, SimulatedExecutor, WorkerLoad, measure_workers

    if device not in STEP_TIMES:
        raise UsageError(f"--device takes {' or '.join(STEP_TIMES)}, not {device!r}; others have not been measured")

    def run_manifest(manifest: Path, executor: SimulatedExecutor) -> None:
        arguments = (str(manifest), ManifestOptions()), str(batch_size), BatchScope(), SynthesisFlags()
        output, quiet = OutputFile(str(manifest.with_suffix("") / "{id}.wav")), OutputOptions(quiet=True)
        with Path(os.devnull).open("w") as null, redirect_stdout(null):
            run_batch(*arguments, output, quiet, workers=WorkerOptions("auto"), executor=lambda *_: executor)

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        figures = measure_workers(WorkerLoad(count, batch_size, lines, device), Path(temporary), run_manifest)
    _print_figures(figures, json)


def voice(
    model: Model = None,
    device: Device = "auto",
    sentences: Annotated[int, typer.Option(metavar="N", min=1, max=200, help="Held-out sentences to speak.")] = 200,
    verify_model: Annotated[str, setting("verify_model", panel=None)] = "base.en",
    json: Json = False,
) -> None:
    """Word error rate, clean stops, speed, pitch spread and MOS of synthesized English sentences.

    Needs the extra csm-cli\\[verify]; the MOS needs csm-cli\\[judge].
    """
    from csm_cli.bench.voice import held_out_sentences, measure
    from csm_cli.checkpoint import open_checkpoint
    from csm_cli.device import pick_device, pick_dtype
    from csm_cli.generation.synthesizer import Synthesizer
    from csm_cli.generation.verification import WhisperRecognizer

    recognizer, log = WhisperRecognizer(verify_model), _logger(json)
    log(f"loading {model or 'the bundled voice'} ...")
    where = pick_device(device)
    synth = Synthesizer(open_checkpoint(model), where, pick_dtype("auto", where))
    _print_figures(measure(synth, recognizer, held_out_sentences()[:sentences], log), json)


def train(
    model: Model = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Conversations in a batch.")] = 4,
    frames: Annotated[int, typer.Option(metavar="N", min=2, help="Frames of audio in each.")] = 50,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps on each side.")] = 10,
    json: Json = False,
) -> None:
    """Training steps compared with plain transformers, which encodes its audio in every step, on the same batch."""
    from csm_cli.bench.train import TrainWorkload, measure

    _logger(json)(f"loading {model or 'the bundled voice'} ...")
    _print_figures(measure(model, TrainWorkload(batch, frames, steps)), json)


for command in (decode, batch, context, start, serve, batch_overhead, workers, voice, train):
    bench.command(command.__name__.replace("_", "-"))(command)


def _logger(json: bool) -> Callable[[str], None]:
    """Writes progress to standard error unless only JSON is wanted."""
    configure_logging(OutputOptions(json=json))
    return (lambda line: None) if json else log_line


def _print_figures(figures: Mapping[str, Any], json: bool, **lists: Any) -> None:
    """A table on standard error, and the figures as a JSON line on standard output, there with the lists."""
    rounded = _rounded(figures)
    if not json:
        width = max(map(len, rounded))
        for name, value in rounded.items():
            log_line(f"{name:{width}}  {value:.3f}" if isinstance(value, float) else f"{name:{width}}  {value}")
    emit_json(rounded | lists)


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
