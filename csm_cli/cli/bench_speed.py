"""csm bench decode, batch, growth and start: how fast the engine is, on what, against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit_json, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.settings import setting

if TYPE_CHECKING:
    from csm_cli.bench.timing import PreparedBench, SpeedLoad


@dataclass(frozen=True)
class Bench:
    """What is measured, and how it is told."""

    model: Annotated[
        str | None,
        setting("model", help="Or csm-1b-random: its shapes, random weights."),
    ] = None
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    dtype: Annotated[str, typer.Option(metavar="NAME", help="auto, float32, bfloat16 or float16.")] = "auto"
    context: Annotated[int, typer.Option(metavar="N", min=1, help="Positions before the first frame.")] = 100
    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames decoded on each side.")] = 60
    quantize: Annotated[str, setting("quantize", panel=None)] = "none"
    compile: Annotated[bool, setting("compile", panel=None)] = False
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False


def decode(
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows decoded together.")] = 1, *, bench: Bench
) -> None:
    """The frame loop beside transformers' generate, in the same run on the same weights, and the device's floor."""
    from csm_cli.bench.decode import measure

    ready, changes = _ready(bench)
    print_figures({**measure(ready, _load(bench, batch), _noting(bench.json), bench.compile), **changes}, bench.json)


def batch(
    size: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Rows decoded together.")] = 16,
    *,
    bench: Bench,
) -> None:
    """Audio per second of many rows decoded together, over one row alone."""
    from csm_cli.bench.batch import measure

    ready, changes = _ready(bench)
    print_figures({**measure(ready, _load(bench, size), bench.compile), **changes}, bench.json)


def growth(
    far: Annotated[
        int, typer.Option(metavar="N", min=1, help="Positions before the first frame, of the other.")
    ] = 1900,
    *,
    bench: Bench,
) -> None:
    """A frame's time after much context, over one after little."""
    from csm_cli.bench.context_scaling import measure

    ready, changes = _ready(bench)
    print_figures({**measure(ready, _load(bench, 1), far, bench.compile), **changes}, bench.json)


def start(
    model: Annotated[str | None, setting("model")] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Cold processes of each kind.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="The figures as one JSON line, and nothing else.")] = False,
) -> None:
    """`csm say` of ten words in a cold process, over importing torch and its own decoding."""
    from csm_cli.bench.start import measure

    configure_logging(OutputOptions(json=json))
    print_figures(measure(model, runs), json)


def _load(bench: Bench, rows: int) -> SpeedLoad:
    from csm_cli.bench.timing import SpeedLoad

    return SpeedLoad(rows, bench.context, bench.frames)


def _ready(bench: Bench) -> tuple[PreparedBench, dict[str, Any]]:
    """The model, and what rounding it has changed."""
    from csm_cli.bench.quantization import quantize_and_compare
    from csm_cli.bench.random_checkpoint import open_for_bench
    from csm_cli.bench.timing import PreparedBench
    from csm_cli.device import pick_device, pick_dtype

    configure_logging(OutputOptions(json=bench.json))
    rounded = bench.quantize == "int8"
    _noting(bench.json)(f"loading {bench.model or 'the bundled voice'} ...")
    device = pick_device(bench.device)
    ready = PreparedBench(open_for_bench(bench.model), device, pick_dtype(bench.dtype, device))
    changes = quantize_and_compare(ready, bench.frames) if rounded else {}
    return ready, {"quantize": bench.quantize, "compile": bench.compile, **changes}


def _noting(json: bool) -> Any:
    return (lambda line: None) if json else log_line


def print_figures(figures: Mapping[str, Any], json: bool) -> None:
    """A table for people, and the figures as the last line."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    if not json:
        width = max(map(len, rounded))
        for name, value in rounded.items():
            log_line(f"{name:{width}}  {value:.3f}" if isinstance(value, float) else f"{name:{width}}  {value}")
    emit_json(rounded)
