"""`csm bench decode`, `batch` and `context`: decode speed, and how much `--quantize int8` changes the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from csm_cli.bench.baselines import Baseline, bandwidth, frame_bytes
from csm_cli.bench.timing import BenchModel, TimedEngine, Workload, clock, peak_memory_mb
from csm_cli.engine import Engine, decode
from csm_cli.models.csm.kv_cache import PrefillSlots
from csm_cli.models.csm.model import CsmModel

_ROUND_FRAMES = 10  # short rounds, so that other load on the machine affects both sides alike
_WARM_UP_FRAMES = 3
_REPEATS = 3
_ROUNDS = 4
_COMPARED_CONTEXT, _COMPARED_FRAMES = 20, 25

Figures = dict[str, Any]


def measure_decode(bench: BenchModel, workload: Workload, log: Callable[[str], None], compile: bool = False) -> Figures:
    """The engine and transformers' `generate` in alternating rounds on the same weights, and the roofline."""
    from torch._dynamo.utils import counters

    timed = TimedEngine(bench, workload, compile)

    def captures() -> int:
        """Graphs captured by the engine and compiled by torch.compile."""
        return timed.engine.runner.captures + int(counters["stats"]["unique_graphs"])

    peak, captured = peak_memory_mb(bench.device), captures()
    for _ in range(_REPEATS):
        timed.frames(_WARM_UP_FRAMES)
    captured = captures() - captured
    log("loading transformers ...")
    baseline = Baseline(bench.checkpoint, bench.device, bench.dtype)
    modes = ("eager", "static") if bench.device.type == "cuda" else ("eager",)
    for mode in modes:
        baseline.frames(bench.request(workload.context, _WARM_UP_FRAMES), mode)
    log(f"decoding {workload.frames} frames on each side ...")
    engine_seconds: list[float] = []
    baseline_seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    while len(engine_seconds) < workload.frames:
        count = min(_ROUND_FRAMES, workload.frames - len(engine_seconds))
        engine_seconds += timed.frames(count)[0]
        for mode in modes:
            baseline_seconds[mode] += baseline.frames(bench.request(workload.context, count + 1), mode)
    _, codes = timed.frames(min(_ROUND_FRAMES, workload.frames))
    frame, codec = median(engine_seconds), median(timed.codec_frame(codes) for _ in range(_REPEATS))
    total, config = timed.total_frame(frame, codec), bench.checkpoint.config
    roofline = frame_bytes(config, bench.dtype) / bandwidth(config, bench.device)
    rtf = total * bench.codec.frame_rate
    return {
        "bench": "decode",
        **_setup(bench, workload),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "ms_per_frame": 1e3 * frame,
        "codec_ms_per_frame": 1e3 * codec,
        "total_ms_per_frame": 1e3 * total,
        "rtf": rtf,
        "audio_seconds_per_second": workload.batch / rtf,
        "roofline_ms_per_frame": 1e3 * roofline,
        "times_roofline": frame / roofline,
        **compare_baselines({name: median(each) for name, each in baseline_seconds.items()}, frame / workload.batch),
        "first_audio_ms": 1e3 * median(timed.first_audio() for _ in range(_REPEATS)),
        "captures_after_warmup": captured,
        "peak_memory_mb": peak,
    }


def compare_baselines(baselines: dict[str, float], engine: float) -> Figures:
    """The speed-up over transformers' fastest mode. Seconds per frame of one row on both sides."""
    fastest = min(baselines, key=lambda name: baselines[name])
    return {
        "baseline": fastest,
        "baseline_ms_per_frame": 1e3 * baselines[fastest],
        **{f"baseline_{name}_ms_per_frame": 1e3 * seconds for name, seconds in baselines.items() if name != fastest},
        "speedup": baselines[fastest] / engine,
    }


def measure_batch(bench: BenchModel, workload: Workload, compile: bool = False) -> Figures:
    """Audio seconds per second of one row and of `workload.batch` rows, codec included, in alternating rounds."""
    sides = {"single_": TimedEngine(bench, replace(workload, batch=1), compile)}
    sides[""] = TimedEngine(bench, workload, compile)
    seconds: dict[str, list[float]] = {f"{prefix}{part}": [] for prefix in sides for part in ("", "codec_", "total_")}
    for _ in range(_ROUNDS):
        for prefix, timed in sides.items():
            frame_seconds, codes = timed.frames(-(-workload.frames // _ROUNDS))
            seconds[prefix] += frame_seconds
            seconds[f"{prefix}codec_"].append(timed.codec_frame(codes))
        for prefix, timed in sides.items():
            seconds[f"{prefix}total_"].append(timed.utterance())
    medians = {name: median(values) for name, values in seconds.items()}
    single = 1 / (medians["single_total_"] * bench.codec.frame_rate)
    batched = workload.batch / (medians["total_"] * bench.codec.frame_rate)
    return {
        "bench": "batch",
        **_setup(bench, workload),
        **{f"{name}ms_per_frame": 1e3 * value for name, value in medians.items()},
        "single_audio_seconds_per_second": single,
        "audio_seconds_per_second": batched,
        "speedup": batched / single,
        "speedup_without_codec": workload.batch * medians["single_"] / medians[""],
    }


def measure_context(bench: BenchModel, workload: Workload, long_context: int, compile: bool = False) -> Figures:
    """Decode time after `workload.context` and after `long_context` positions, in alternating rounds.

    Each round is a whole utterance: its first frames, in which a CPU records its operators, are slower.

    Raises:
        UsageError: `long_context` and the frames exceed the context window.
    """
    engines = [TimedEngine(bench, replace(workload, context=n), compile) for n in (workload.context, long_context)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for timed, times in zip(engines, seconds, strict=True):
            times += timed.frames(workload.frames)[0]
    short, long = map(median, seconds)
    return {
        "bench": "context",
        **_setup(bench, workload),
        "long_context": long_context,
        "ms_per_frame": 1e3 * short,
        "long_ms_per_frame": 1e3 * long,
        "added_share": long / short - 1,
    }


def _setup(bench: BenchModel, workload: Workload) -> Figures:
    return {
        "model": bench.checkpoint.name,
        "device": bench.device.type,
        "threads": torch.get_num_threads(),
        "clock": clock(bench.device),
        "batch": workload.batch,
        "context": workload.context,
        "frames": workload.frames,
    }


def quantize_and_compare(bench: BenchModel, frames: int = _COMPARED_FRAMES) -> dict[str, float]:
    """Quantizes the model's layers to 8 bits and compares its logits on the same codes before and after.

    codes_equal: the share of likeliest codes that stay the same. logits_error: root mean square error of the logits
    over their standard deviation.
    """
    request = bench.request(_COMPARED_CONTEXT, min(frames, _COMPARED_FRAMES))
    requests = iter([request])
    codes = torch.stack([frame.codes for frame in decode(Engine(bench.model), lambda: next(requests, None))])
    before = teacher_forced_logits(bench.model, request.prompt, codes)
    bench.model.quantize()
    after = teacher_forced_logits(bench.model, request.prompt, codes)
    equal = (before.argmax(-1) == after.argmax(-1)).float().mean()
    error = (after - before).square().mean().sqrt() / before.std()
    return {"codes_equal": float(equal), "logits_error": float(error)}


@torch.inference_mode()
def teacher_forced_logits(model: CsmModel, prompt: Tensor, codes: Tensor) -> Tensor:
    """[T, K, codes]: the logits of each code [T, K] after a prompt [S, K + 1] and all codes before it."""
    device, count = model.device, len(codes)
    codes = codes.to(device)
    embedded = torch.cat((model.embed_prompt(prompt.to(device)), model.embed_frames(codes)))[None]
    length = embedded.shape[1]
    hidden = model.backbone(embedded, model.backbone.new_cache(1, length), PrefillSlots(0, 1, 0, length))
    hidden = hidden[0, -count - 1 : -1]  # [T, hidden]
    inputs = [table[codes[:, index]] for index, table in enumerate(model.depth_tables)]
    depth_inputs = torch.stack((model.projector(hidden), *inputs), 1)  # [T, K, depth hidden]
    codebooks = depth_inputs.shape[1]
    mixed = model.depth(depth_inputs, model.depth.new_cache(count, codebooks), PrefillSlots(0, count, 0, codebooks))
    depth_logits = [head(mixed[:, index + 1]) for index, head in enumerate(model.depth_heads)]
    return torch.stack((model.head(hidden), *depth_logits), 1)
