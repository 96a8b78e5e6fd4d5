"""`csm bench train`: training steps compared with plain transformers, which encodes its audio in every step."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csm_cli.bench.random_checkpoint import silence_logs
from csm_cli.bench.timing import peak_memory_mb
from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.data.store import CodedTurn, Example
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.mimi import Codec
from csm_cli.models.mimi.config import codec_config
from csm_cli.train.batches import LossMask, apply_loss_mask, collate, example_row

_TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds at all."
_LEARNING_RATE = 1e-5
_MEMORY_STEPS = 3


@dataclass(frozen=True)
class TrainWorkload:
    """`steps` steps on each side, of `batch` conversations with `frames` frames of audio each."""

    batch: int = 4
    frames: int = 50
    steps: int = 10


def measure(model: str | None, workload: TrainWorkload) -> dict[str, Any]:
    """Median seconds of alternating steps, and the peak memory of each side in a process of its own."""
    silence_logs()
    sides = {name: make_step(model, workload) for name, make_step in _SIDES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(workload.steps + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first step warms up
    return {
        "bench": "train",
        "batch": workload.batch,
        "frames": workload.frames,
        "steps_per_second": 1 / medians["csm_cli"],
        "transformers_steps_per_second": 1 / medians["transformers"],
        "speedup": medians["transformers"] / medians["csm_cli"],
        "peak_mb": peak_of_process("csm_cli", model, workload),
        "transformers_peak_mb": peak_of_process("transformers", model, workload),
        "threads": torch.get_num_threads(),
    }


def csm_cli_step(model: str | None, workload: TrainWorkload) -> Callable[[], None]:
    """Encoded audio, the depth decoder on a sixteenth of the frames; EMA weights and loss checks included."""
    import numpy as np
    from accelerate import Accelerator

    from csm_cli.train.loss import LossModule
    from csm_cli.train.settings import TrainSettings
    from csm_cli.train.trainable_model import TrainableModel
    from csm_cli.train.trainer import OptimizerConfig, Trainer

    settings = TrainSettings(data="-", output="-", model=model, steps=10**6)
    trainable = TrainableModel(settings)
    prompt_builder = PromptBuilder(trainable.checkpoint.tokenizer_file, trainable.checkpoint.config)
    rows = [example_row(each, prompt_builder) for each in examples(trainable.checkpoint, workload)]
    optimizer = OptimizerConfig(10**6, _LEARNING_RATE, ema_decay=0.0)
    trainer = Trainer(LossModule(trainable.model), optimizer, Accelerator(cpu=True))
    random = np.random.default_rng(0)

    def step() -> None:
        trainer.update([collate([apply_loss_mask(row, LossMask(), random) for row in rows])])

    return step


def transformers_step(model: str | None, workload: TrainWorkload) -> Callable[[], None]:
    """As in transformers' documentation of CSM: `model(**inputs).loss.backward()`, all codebooks of every frame."""
    from transformers import CsmForConditionalGeneration

    checkpoint = open_checkpoint(model)
    folder = checkpoint.tokenizer_file.parent  # the bundled voice or a Hub snapshot
    network = CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    network.codec_model.requires_grad_(False).eval()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, fused=True)
    inputs = transformers_inputs(checkpoint, workload)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


_SIDES = {"csm_cli": csm_cli_step, "transformers": transformers_step}


def _noise(checkpoint: Checkpoint, workload: TrainWorkload) -> Tensor:
    """[B, samples]"""
    length = workload.frames * codec_config(checkpoint.codec_config).frame_samples
    return 0.1 * torch.randn(workload.batch, length, generator=torch.Generator().manual_seed(0))


def examples(checkpoint: Checkpoint, workload: TrainWorkload) -> list[Example]:
    """The conversations as training reads them, encoded once."""
    codec = Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)
    codes = [codec.encode(samples) for samples in _noise(checkpoint, workload)]
    return [Example(str(number), (CodedTurn(0, _TEXT, each),)) for number, each in enumerate(codes)]


def transformers_inputs(checkpoint: Checkpoint, workload: TrainWorkload) -> dict[str, Tensor]:
    """The same conversations as CsmProcessor encodes them, with output_labels."""
    config = checkpoint.config
    text = torch.tensor(PromptBuilder(checkpoint.tokenizer_file, config).text_ids(0, _TEXT))
    frames = torch.full((workload.frames,), config.audio_token)
    ids = torch.cat((text, frames, torch.tensor([config.audio_eos_token]))).repeat(workload.batch, 1)
    samples = _noise(checkpoint, workload)
    labels = torch.where((ids == config.audio_token) | (ids == config.audio_eos_token), ids, -100)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_values": samples[:, None],
        "input_values_cutoffs": torch.full((workload.batch, 1), samples.shape[1]),
        "labels": labels,
    }


def peak_of_process(side: str, model: str | None, workload: TrainWorkload) -> float:
    """Peak memory in megabytes of a few steps in a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_steps, (side, model, workload, torch.get_num_threads()))


def _run_steps(side: str, model: str | None, workload: TrainWorkload, threads: int) -> float:
    torch.set_num_threads(threads)
    silence_logs()
    step = _SIDES[side](model, workload)
    for _ in range(_MEMORY_STEPS):
        step()
    return peak_memory_mb(torch.device("cpu"))
