"""A training step beside a plain one of transformers' CSM, which encodes its audio each time."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from csm_cli.bench.random_checkpoint import silence_logs
from csm_cli.bench.timing import peak_memory
from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.store import CodedTurn, Example
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.mimi import Codec
from csm_cli.train.batches import Batch, LossMask, apply_loss_mask, collate, example_row

if TYPE_CHECKING:
    from torch import Tensor

    from csm_cli.checkpoint import Checkpoint

_TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds at all."
_RATE = 1e-5
_STEPS_FOR_MEMORY = 3


@dataclass(frozen=True)
class TrainLoad:
    """`steps` steps on each side, of `rows` conversations with `frames` frames of audio each."""

    rows: int = 4
    frames: int = 50
    steps: int = 10


def measure(model: str | None, load: TrainLoad) -> dict[str, Any]:
    """Median seconds of a step on each side, taken in turns, and the peak memory of each in a process of its own."""
    silence_logs()
    sides = {"plain": transformers_step(model, load), "ours": engine_step(model, load)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(load.steps + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    ours, plain = (statistics.median(seconds[name][1:]) for name in ("ours", "plain"))  # the first one warms up
    memory = {name: _alone(name, model, load) for name in sides}
    return {
        "bench": "train",
        "rows": load.rows,
        "frames": load.frames,
        "steps_per_second": 1 / ours,
        "plain_steps_per_second": 1 / plain,
        "speedup": plain / ours,
        "peak_mb": memory["ours"],
        "plain_peak_mb": memory["plain"],
        "threads": torch.get_num_threads(),
    }


def engine_step(model: str | None, load: TrainLoad) -> Callable[[], None]:
    """Prepared codes, the depth decoder on a sixteenth of the frames; averaged weights and checks included."""
    import numpy as np
    from accelerate import Accelerator

    from csm_cli.train.loss import LossModule
    from csm_cli.train.settings import TrainSettings
    from csm_cli.train.trainable_model import TrainableModel
    from csm_cli.train.trainer import OptimizerConfig, Trainer

    settings = TrainSettings(data="-", output="-", model=model, steps=10**6)
    subject = TrainableModel(settings)
    example = _examples(subject.checkpoint, load)
    prompt_builder = PromptBuilder(subject.checkpoint.tokenizer_file, subject.checkpoint.config)
    rows = [example_row(each, prompt_builder) for each in example]
    trainer = Trainer(LossModule(subject.model), OptimizerConfig(10**6, _RATE, ema_decay=0.0), Accelerator(cpu=True))
    random = np.random.default_rng(0)

    def step() -> None:
        trainer.update([_batch(rows, random)])

    return step


def _batch(rows: list[Any], random: Any) -> Batch:
    return collate([apply_loss_mask(row, LossMask(), random) for row in rows])


def transformers_step(model: str | None, load: TrainLoad) -> Callable[[], None]:
    """As transformers' documentation of CSM has it: `model(**inputs).loss.backward()`, every frame learned whole."""
    from transformers import CsmForConditionalGeneration

    checkpoint = open_checkpoint(model)
    folder = checkpoint.tokenizer_file.parent  # of the bundled voice, or of the hub's snapshot
    net = CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    net.codec_model.requires_grad_(False).eval()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, fused=True)
    inputs = _inputs(checkpoint, load)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        net(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def _sound(checkpoint: Checkpoint, load: TrainLoad) -> Tensor:
    """Noise [rows, samples]."""
    codec = _codec(checkpoint)
    return 0.1 * torch.randn(load.rows, load.frames * codec.frame_samples, generator=torch.Generator().manual_seed(0))


def _codec(checkpoint: Checkpoint) -> Codec:
    return Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)


def _examples(checkpoint: Checkpoint, load: TrainLoad) -> list[Example]:
    codec = _codec(checkpoint)
    codes = [codec.encode(samples) for samples in _sound(checkpoint, load)]
    return [Example(str(number), (CodedTurn(0, _TEXT, each),)) for number, each in enumerate(codes)]


def _inputs(checkpoint: Checkpoint, load: TrainLoad) -> dict[str, Tensor]:
    """What CsmProcessor makes of the same conversations, with output_labels."""
    config = checkpoint.config
    text = torch.tensor(PromptBuilder(checkpoint.tokenizer_file, config).text_ids(0, _TEXT))
    frames = torch.full((load.frames,), config.audio_token)
    ids = torch.cat((text, frames, torch.tensor([config.audio_eos_token]))).repeat(load.rows, 1)
    sound = _sound(checkpoint, load)
    labels = torch.where((ids == config.audio_token) | (ids == config.audio_eos_token), ids, -100)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_values": sound[:, None],
        "input_values_cutoffs": torch.full((load.rows, 1), sound.shape[1]),
        "labels": labels,
    }


def _alone(name: str, model: str | None, load: TrainLoad) -> float:
    """Megabytes at the peak of a few steps in a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, model, load, torch.get_num_threads()))


def _peak(name: str, model: str | None, load: TrainLoad, threads: int) -> float:
    torch.set_num_threads(threads)
    silence_logs()
    step = (engine_step if name == "ours" else transformers_step)(model, load)
    for _ in range(_STEPS_FOR_MEMORY):
        step()
    return _resident_peak()


def _resident_peak() -> float:
    """Megabytes, of this program alone: what getrusage tells includes what the process was before it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory(torch.device("cpu"))
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10
