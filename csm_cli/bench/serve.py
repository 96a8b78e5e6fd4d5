"""`csm bench serve`: the server under load, beside `csm batch` and beside transformers behind a lock."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from csm_cli.bench.load import Line, disconnect_figures, load_figures, overload_figures, started_server
from csm_cli.bench.voice import held_out_sentences
from csm_cli.device import pick_device
from csm_cli.report import format_count

_MAX_NAIVE_CLIENTS = 16  # one request at a time: 64 would wait for minutes and show nothing new
_OVERLOAD = 4
_DISCONNECTING_CLIENTS = 32

Figures = dict[str, Any]


@dataclass(frozen=True)
class ServeWorkload:
    """clients: how many at a time, one load after the other. per_client: lines that each sends, one after the other.

    slots, max_queue: of the server. disconnects: requests of clients most of which leave early.
    """

    clients: tuple[int, ...] = (1, 4, 16, 64)
    per_client: int = 4
    slots: int = 16
    max_queue: int = 64
    disconnects: int = 1000

    def lines(self, count: int) -> list[Line]:
        """Held-out sentences, again with other seeds when they are used up."""
        sentences = held_out_sentences()
        return [Line(sentences[number % len(sentences)], number + 1) for number in range(count)]


def measure_serve(
    model: str | None,
    device: str,
    workload: ServeWorkload,
    run_batch: Callable[[Path], None],
    log: Callable[[str], None],
) -> tuple[Figures, list[Figures]]:
    """The figures of the run, and a row for each load.

    run_batch: generates a manifest with as many rows at a time as the server has slots; the model is loaded already.

    Raises:
        CsmError: a server did not start, or answered nothing.
    """
    rows: list[Figures] = []
    arguments = ["csm_cli", "serve", "--port", "0", "--json", "--device", device, "--batch-size", str(workload.slots)]
    arguments += ["--max-queue", str(workload.max_queue), *(["--model", model] if model else [])]
    with started_server(arguments) as server:
        load_figures(server, workload.slots, workload.lines(workload.slots))  # warms up every batch size
        for clients in workload.clients:
            log(f"csm serve, {format_count(clients, 'client')} ...")
            rows.append({"server": "csm serve"} | load_figures(server, clients, _load(workload, clients)))
        log("csm batch of the lines of the load with as many clients as slots ...")
        lines = _load(workload, workload.slots)
        batch = _batch_audio_per_second(lines, workload.slots, run_batch)
        served = load_figures(server, workload.slots, lines)["audio_s_per_s"]
        figures: Figures = {
            "bench": "serve",
            "model": model or "bundled voice",
            "slots": workload.slots,
            "batch_audio_s_per_s": batch,
            "served_audio_s_per_s": served,
            "served_of_batch": served / batch,
        }
        clients = _OVERLOAD * (workload.slots + workload.max_queue)
        log(f"{clients} clients at once ...")
        figures |= overload_figures(server, clients, workload.lines(clients))
        if workload.disconnects:
            log(f"{workload.disconnects} requests, most of whose clients leave ...")
            figures |= disconnect_figures(server, _DISCONNECTING_CLIENTS, workload.lines(workload.disconnects))
    folder = model or str(resources.files("csm_cli") / "assets" / "voice")
    with started_server(["csm_cli.bench.naive_server", folder, str(pick_device(device))]) as naive:
        for clients in (each for each in workload.clients if each <= _MAX_NAIVE_CLIENTS):
            log(f"transformers behind a lock, {format_count(clients, 'client')} ...")
            lines = workload.lines(clients)
            rows.append({"server": "transformers behind a lock"} | load_figures(naive, clients, lines))
    return figures, rows


def _load(workload: ServeWorkload, clients: int) -> list[Line]:
    return workload.lines(clients * workload.per_client)


def _batch_audio_per_second(lines: Sequence[Line], slots: int, run_batch: Callable[[Path], None]) -> float:
    """Seconds of audio that `csm batch` writes per second of its run, after a run of `slots` lines."""
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("warm-up", lines[:slots]), ("timed", lines)):
            manifest = Path(folder) / f"{name}.jsonl"
            items = [json.dumps({"id": str(line.seed), "text": line.text, "seed": line.seed}) for line in rows]
            manifest.write_text("\n".join(items), encoding="utf-8")
            start = time.perf_counter()
            run_batch(manifest)
            seconds = time.perf_counter() - start
        records = (manifest.with_suffix("") / "results.jsonl").read_text(encoding="utf-8").splitlines()
        audio: float = sum(json.loads(record)["duration_s"] for record in records)
        return audio / seconds
